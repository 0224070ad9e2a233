"""What is known of a patient besides the slides, and what hospitals agree on about it; the tables are in ``cohort``.

Shape suffixes: F fields of the schema, E entries of the vector that a model reads.
"""
