"""Fine-tuning of a patch encoder inside a small GPU.

Shape suffixes: N patches of a slide, K of them selected, M of a micro-batch, D features, C classes or colours, H × W
pixels.
"""
