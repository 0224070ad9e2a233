"""One picture as a slide in many formats: codecs, colour spaces, scanners' resolutions, with pyramid and without."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import imagecodecs
import numpy as np
import tifffile

Codec = Literal["jpeg", "jpeg-rgb", "jpeg2000", "jpeg2000-ycc", "lzw", "none"]
_APERIO_YCC, _APERIO_RGB = 33003, 33005


@dataclass(frozen=True)
class Format:
    """How a slide is stored."""

    codec: Codec
    mpp: float = 0.25
    levels: int = 3
    tile: int = 240
    subsampling: tuple[int, int] = (2, 2)

    @property
    def aperio(self) -> bool:
        """JPEG 2000 in a TIFF is Aperio's alone, and so is RGB kept as JPEG."""
        return self.codec in ("jpeg2000", "jpeg2000-ycc", "jpeg-rgb")

    def __str__(self) -> str:
        return f"{self.codec}-{self.mpp}-{self.levels}levels-{self.tile}px"


FORMATS = [
    Format("jpeg"),
    Format("jpeg", mpp=0.5, levels=1),
    Format("jpeg", tile=256, subsampling=(1, 1)),
    Format("jpeg-rgb"),
    Format("jpeg2000", mpp=0.5, levels=2),
    Format("jpeg2000-ycc", levels=2),
    Format("lzw"),
    Format("none", mpp=0.5, levels=1, tile=256),
]


def tissue_like(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return RGB noise of several scales in pink and violet: it shows wrong colours, places and sizes at once."""
    random = np.random.default_rng(seed)
    mixed = np.zeros((height, width, 3), np.float32)
    for step, strength in ((64, 40), (16, 25), (4, 20), (1, 8)):
        coarse = random.normal(0, strength, (height // step + 2, width // step + 2, 3)).astype(np.float32)
        mixed += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip(mixed + np.array((205, 140, 185), np.float32), 0, 255).astype(np.uint8)


def write_format(path: Path, image_HW3: np.ndarray, how: Format) -> None:
    """Write a picture, whose pixels are level 0, as a slide."""
    with tifffile.TiffWriter(path) as tiff:
        for level in range(how.levels):
            if level:
                size = image_HW3.shape[1] // 2, image_HW3.shape[0] // 2
                image_HW3 = cv2.resize(image_HW3, size, interpolation=cv2.INTER_AREA)
            _write_level(tiff, image_HW3, how, level)


def _write_level(tiff: tifffile.TiffWriter, image_HW3: np.ndarray, how: Format, level: int) -> None:
    height, width = image_HW3.shape[:2]
    per_cm = 10_000 / (how.mpp * 2**level)
    common = {
        "tile": (how.tile, how.tile),
        "resolution": (per_cm, per_cm),
        "resolutionunit": "CENTIMETER",
        "subfiletype": int(level > 0 and not how.aperio),
        "metadata": None,
        "software": False,
    }
    if how.aperio:
        common["description"] = f"Aperio Image Library v1.0\r\n{width}x{height}|AppMag = 40|MPP = {how.mpp}"
    if how.codec == "jpeg":
        tiff.write(
            image_HW3,
            photometric="rgb",
            compression="jpeg",
            compressionargs={"level": 75},
            subsampling=how.subsampling,
            maxworkers=1,
            **common,
        )
    elif how.codec in ("lzw", "none"):
        tiff.write(image_HW3, photometric="rgb", compression=None if how.codec == "none" else "lzw", **common)
    else:
        code = {"jpeg-rgb": 7, "jpeg2000": _APERIO_RGB, "jpeg2000-ycc": _APERIO_YCC}[how.codec]
        encoded = (_encode(tile, how.codec) for tile in _tiles(image_HW3, how.tile))
        arguments = {"outcolorspace": "rgb"} if code == 7 else None  # else the tag would say YCbCr
        tiff.write(
            encoded,
            shape=(height, width, 3),
            dtype=np.uint8,
            photometric="rgb",
            compression=code,
            compressionargs=arguments,
            **common,
        )


def _tiles(image_HW3: np.ndarray, edge: int) -> Iterator[np.ndarray]:
    """Yield the tiles row by row; those at the border are filled up with the last pixels."""
    height, width = image_HW3.shape[:2]
    filled = np.pad(image_HW3, ((0, -height % edge), (0, -width % edge), (0, 0)), mode="edge")
    for top in range(0, filled.shape[0], edge):
        for left in range(0, filled.shape[1], edge):
            yield np.ascontiguousarray(filled[top : top + edge, left : left + edge])


def _encode(tile_HW3: np.ndarray, codec: Codec) -> bytes:
    if codec == "jpeg-rgb":
        stream = imagecodecs.jpeg8_encode(tile_HW3, level=75, colorspace="rgb", outcolorspace="rgb")
        # As scanners write it: without Adobe's marker nothing in the stream tells that these are red, green and blue.
        assert stream[2:4] == b"\xff\xee"
        return stream[:2] + stream[18:]
    if codec == "jpeg2000":
        return imagecodecs.jpeg2k_encode(tile_HW3, level=40, codecformat="j2k", mct=True)
    ycc_HW3 = cv2.cvtColor(tile_HW3, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    return imagecodecs.jpeg2k_encode(np.ascontiguousarray(ycc_HW3), level=40, codecformat="j2k", mct=False)
