"""Bag models behind one protocol and one registry; one model a file.

Shape suffixes used throughout the package:

| letter | meaning |
|---|---|
| N | instances (patches) of one bag |
| D | width of an instance's feature vector |
| L | inner width of the model, width of the slide vector |
| A | width inside the attention |
| K | attention branches or heads |
| C | classes |
| B | bags |
"""

from fedpath.core.models.checkpoint import load_model, save_model
from fedpath.core.models.protocol import BagModel, BagOutput
from fedpath.core.models.registry import ModelInfo, OptionInfo, available_models, build_model

__all__ = [
    "BagModel",
    "BagOutput",
    "ModelInfo",
    "OptionInfo",
    "available_models",
    "build_model",
    "load_model",
    "save_model",
]
