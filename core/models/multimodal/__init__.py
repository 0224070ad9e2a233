"""Models of a slide and the patient's clinical data: bidirectional distillation, and what it is compared with.

Shape suffixes beyond those of ``fedpath.core.models``: F clinical fields, E entries of the clinical vector, M width of
the clinical encoding, H width of a branch's hidden layer, P width of the prompt.
"""
