"""Encoders: a patch in, a feature vector out. One row of the registry an encoder.

Shape suffixes: B patches of a batch, H and W their pixels, C colours or channels, D features.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpath.client.slides import seeded_conv
from fedpath.core.errors import ConfigError, did_you_mean


@dataclass(frozen=True, slots=True)
class EncoderInfo:
    """What a federation must agree on about an encoder, and what a user should know before choosing it."""

    name: str
    width: int
    """Length of a feature vector."""
    sha256: str
    """Of the weights: every tensor's name, type, shape and bytes."""
    transform: str
    """From 8-bit RGB to the encoder's input."""
    licence: str
    source: str
    """Where the weights come from."""
    summary: str


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of the registry."""

    width: int
    transform: str
    licence: str
    source: str
    summary: str
    build: Callable[[], nn.Module]


_ROWS: Mapping[str, _Row] = MappingProxyType(
    {
        "seeded-conv": _Row(
            width=seeded_conv.WIDTH,
            transform="rgb/127.5-1",
            licence="Apache-2.0",
            source=f"drawn from torch.Generator seed {seeded_conv.SEED}",
            summary="random convolutions, for demos and tests only: it has never seen tissue",
            build=seeded_conv.SeededConv,
        ),
    }
)


class Encoder:
    """An encoder ready to run on the CPU."""

    def __init__(self, name: str) -> None:
        """Build encoder ``name``.

        Raises:
            ConfigError: no encoder has this name.
        """
        self.info = describe(name)
        self._module = _row(name).build().eval()

    def encode(self, patches_BHWC: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Return features (B×D) of RGB patches (B×H×W×3)."""
        with torch.inference_mode():
            pixels_BCHW = torch.from_numpy(patches_BHWC).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
            features_BD: Tensor = self._module(pixels_BCHW)
        features: NDArray[np.float16] = features_BD.half().numpy()
        return features


def available() -> list[EncoderInfo]:
    """Return every encoder this installation has."""
    return [describe(name) for name in _ROWS]


@cache
def describe(name: str) -> EncoderInfo:
    """Return what there is to know about encoder ``name``.

    Raises:
        ConfigError: no encoder has this name.
    """
    row = _row(name)
    digest = hashlib.sha256()
    for key, tensor in sorted(row.build().state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return EncoderInfo(name, row.width, digest.hexdigest(), row.transform, row.licence, row.source, row.summary)


def _row(name: str) -> _Row:
    if name not in _ROWS:
        remedy = did_you_mean(name, _ROWS, f"available: {', '.join(_ROWS)}")
        raise ConfigError(f"encoder '{name}' is unknown", remedy=remedy)
    return _ROWS[name]
