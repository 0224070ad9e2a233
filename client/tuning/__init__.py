"""Fine-tuning at the hospital: choose patches, read their pixels from the slides, encode the slides again.

Shape suffixes: N patches of a slide, K of them chosen, R of these readable, D features, H × W pixels, C colours, 2 is
(x, y).
"""
