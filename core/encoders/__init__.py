"""Patch encoders: pixels in, one feature vector a patch.

Shape suffixes: B patches of a batch, C colours or channels, H × W pixels, T tokens, D features.
"""
