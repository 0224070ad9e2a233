"""Patch encoders: pixels in, one feature vector a patch.

Shape suffixes: B patches of a batch, C colours or channels, H × W pixels, T tokens, D features.
"""

from fedpath.core.encoders.base import Hidden, PatchEncoder
from fedpath.core.encoders.registry import (
    available,
    blank_encoder,
    build_encoder,
    encoder_sha256,
    first_trainable_stage,
    info_of,
    load_encoder,
    save_encoder,
    trainable_names,
)
from fedpath.core.encoders.row import EncoderInfo

__all__ = [
    "EncoderInfo",
    "Hidden",
    "PatchEncoder",
    "available",
    "blank_encoder",
    "build_encoder",
    "encoder_sha256",
    "first_trainable_stage",
    "info_of",
    "load_encoder",
    "save_encoder",
    "trainable_names",
]
