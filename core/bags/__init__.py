"""Bags of patch features: the feature file and what it holds."""
