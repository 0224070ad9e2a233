"""A patient's clinical data: records, how a hospital's table becomes them, what hospitals agree on about them.

Shape suffixes: F fields of the schema, E entries of the vector that a model reads.
"""
