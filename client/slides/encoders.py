"""An encoder at work: 8-bit patches in, half-precision features out, on the CPU or a GPU.

The encoders themselves are in `core.encoders`. Shape suffixes: B patches of a batch, H and W their pixels, C colours,
D features.
"""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpath.core.encoders import PatchEncoder, build_encoder, encoder_sha256, info_of
from fedpath.core.errors import ConfigError, DataError
from fedpath.core.training.device import deterministic


@dataclass(frozen=True, slots=True)
class EncoderFacts:
    """An encoder with its weights, as feature files and reports name it."""

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


Precision = Literal["float32", "bfloat16"]


class Encoder:
    """An encoder ready to run, by default in float32: features of a CPU and of a GPU then differ by rounding only."""

    def __init__(
        self, name: str, weights: Path | None = None, *, device: str = "cpu", precision: Precision = "float32"
    ) -> None:
        """Build encoder ``name``.

        Args:
            name: of `core.encoders.available`.
            weights: their file, for an encoder that comes without or one that was tuned.
            device: "cpu", "cuda", or one of several GPUs: "cuda:1".
            precision: of products of matrices. bfloat16 is for a GPU alone, and the transform says it: its features
                agree with those of float32 to two digits, so a federation must not mix them.

        Raises:
            ConfigError: no encoder has this name, it needs weights, there is no such device, or it is asked for
                bfloat16 on a CPU.
            DataError: the file of weights is not whole or of another encoder.
        """
        self._device = _device(device)
        self._half = precision == "bfloat16"
        if self._half and self._device.type != "cuda":
            raise ConfigError(
                "bfloat16 is for encoding on a GPU", remedy="encode in float32, or on a device that is a GPU"
            )
        encoder = build_encoder(name, weights)
        self.info = _facts(name, encoder)
        if self._half:
            self.info = replace(self.info, transform=f"{self.info.transform}; bfloat16")
        self._patch_px = info_of(name).patch_px
        self._module = encoder.to(self._device)

    def check_patch(self, patch_px: int) -> None:
        """Refuse an edge of patches (pixels) that the encoder does not take.

        Raises:
            ConfigError: naming the edge it takes.
        """
        if self._patch_px is not None and patch_px != self._patch_px:
            raise ConfigError(
                f"encoder '{self.info.name}' takes patches of {self._patch_px} px, not of {patch_px}",
                remedy=f"--patch {self._patch_px}, in federation.toml features.patch_px = {self._patch_px}",
            )

    def encode(self, patches_BHWC: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Return features (B×D) of RGB patches (B×H×W×3), B at least 1.

        Raises:
            ConfigError: patches of a size that the encoder does not take.
            DataError: features that float16 cannot hold, or NaN.
        """
        for edge in patches_BHWC.shape[1:3]:
            self.check_patch(edge)
        features_BD = self._encode(patches_BHWC).cpu()
        halves_BD: NDArray[np.float16] = features_BD.half().numpy()
        if not np.isfinite(halves_BD).all():
            self._explain(features_BD)
        return halves_BD

    def _encode(self, patches_BHWC: NDArray[np.uint8]) -> Tensor:
        """Return float32 features of one batch, on the device."""
        # TensorFloat-32 would keep 10 bits of a factor, as few as the features have in the end.
        with (
            torch.inference_mode(),
            deterministic(self._device),
            torch.backends.cudnn.flags(allow_tf32=False, benchmark=False),
            torch.autocast("cuda", torch.bfloat16) if self._half else nullcontext(),
        ):
            rgb_BCHW = torch.from_numpy(patches_BHWC).to(self._device).permute(0, 3, 1, 2).float().div_(255)
            features_BD: Tensor = self._module(rgb_BCHW)
        # numpy has no bfloat16, in which autocast may leave them.
        return features_BD.float()

    def _explain(self, features_BD: Tensor) -> None:
        if torch.isfinite(features_BD).all():
            most = float(features_BD.abs().max())
            raise DataError(
                f"encoder '{self.info.name}' gives features of up to {most:.3g}: float16, in which they are stored, "
                f"ends at 65504",
                remedy="its weights are not those of an encoder of patches; if it was tuned, tune it at a lower rate",
            )
        raise DataError(
            f"encoder '{self.info.name}' gives NaN or infinite features",
            remedy="its weights are damaged; if it was tuned, tune it at a lower rate",
        )


def describe(name: str, weights: Path | None = None) -> EncoderFacts:
    """Return an encoder's facts; its weights are read and hashed once, and again if the file has changed.

    Raises:
        ConfigError, DataError: as ``build_encoder`` does.
    """
    if weights is None or not weights.is_file():
        return _described(name, weights, 0, 0)
    stat = weights.stat()
    return _described(name, weights.resolve(), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=16)
def _described(name: str, weights: Path | None, _changed_ns: int, _size: int) -> EncoderFacts:
    return _facts(name, build_encoder(name, weights))


def _device(name: str) -> torch.device:
    """Return a device that torch finds here.

    Raises:
        ConfigError: there is none of this name.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"'{name}' is no device", remedy='give "cpu", "cuda" or "cuda:1"') from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            there = f"its GPUs are cuda:0 … cuda:{count - 1}" if count else "there is no GPU here, or no CUDA torch"
            raise ConfigError(f"this machine has no device '{name}'", remedy=f"{there}; or encode on the CPU")
    elif device.type != "cpu":
        raise ConfigError(f"encoders run on a CPU or on CUDA, not on '{name}'", remedy='give "cpu" or "cuda"')
    return device


def _facts(name: str, encoder: PatchEncoder) -> EncoderFacts:
    info = info_of(name)
    sha256 = encoder_sha256(encoder)
    return EncoderFacts(info.name, info.width, sha256, info.transform, info.licence, info.source, info.summary)
