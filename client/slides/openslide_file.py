"""A slide as OpenSlide reads it: any format, one region at a time, also after an error.

Label and macro images, and properties beyond resolution, background and format, are never read: they can carry names.
"""

import math
from pathlib import Path
from threading import Lock

import numpy as np
import openslide
from numpy.typing import NDArray
from openslide.lowlevel import OpenSlideError, OpenSlideUnsupportedFormatError

from fedpath.core.errors import DataError

READER = f"openslide {openslide.__library_version__}"


class UnreadableError(Exception):
    """One region of a slide could not be decoded; the slide itself goes on."""


class OpenSlideFile:
    """An open slide, for several threads.

    Attributes:
        path: the file.
        sizes: width and height of each level, the largest first.
        downsamples: level-0 pixels a pixel of each level.
        vendor: OpenSlide's name of the format.
        background: RGB the slide states for what was not scanned, white by default.
        stated_mpp: µm/px of level 0 in x and y, as far as the slide states numbers.
    """

    def __init__(self, path: Path) -> None:
        """Open ``path``.

        Raises:
            DataError: not a slide OpenSlide can read.
        """
        self.path = path
        self._lock = Lock()
        self._handle = _open(path)
        self._given_up: list[openslide.OpenSlide] = []
        self.sizes: tuple[tuple[int, int], ...] = self._handle.level_dimensions
        self.downsamples = tuple(float(d) for d in self._handle.level_downsamples)
        properties = self._handle.properties
        self.vendor: str = properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
        red, green, blue = bytes.fromhex(properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF"))
        self.background = (red, green, blue)
        texts = [properties.get(key) for key in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)]
        self.stated_mpp = [value for text in texts if text is not None and (value := _number(text)) is not None]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            for handle in (self._handle, *self._given_up):
                handle.close()

    def region(self, origin: tuple[int, int], level: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Read a region; beyond the slide there is background.

        Args:
            origin: x, y of its top-left corner in level-0 pixels.
            level: which.
            size: width and height in the level's pixels.

        Returns:
            height × width × 3, RGB.

        Raises:
            UnreadableError: it cannot be decoded. Others still can.
            DataError: the slide cannot be opened again after an error.
        """
        limits, downsample = self.sizes[level], self.downsamples[level]
        # OpenSlide would fill what lies beyond with transparency, at the price of real pixels.
        inside = [
            max(1, min(length, limit - round(start / downsample)))
            for length, limit, start in zip(size, limits, origin, strict=True)
        ]
        rgb_HW3 = _over(self._read(origin, level, (inside[0], inside[1])), self.background)
        if (inside[0], inside[1]) == size:
            return rgb_HW3
        canvas_HW3 = np.full((size[1], size[0], 3), self.background, np.uint8)
        canvas_HW3[: inside[1], : inside[0]] = rgb_HW3
        return canvas_HW3

    def _read(self, origin: tuple[int, int], level: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Return RGBA. One bad tile leaves a handle in error for good, also for threads that read elsewhere."""
        first = self._handle
        try:
            return np.asarray(first.read_region(origin, level, size))
        except OpenSlideError:
            second = self._another_than(first)
        # The error may be another thread's: only a handle that had none before tells.
        try:
            return np.asarray(second.read_region(origin, level, size))
        except OpenSlideError as error:
            self._another_than(second)
            raise UnreadableError(str(error)) from error

    def _another_than(self, failed: openslide.OpenSlide) -> openslide.OpenSlide:
        """Return a handle without error; the failed one is closed with the slide, others may still be using it."""
        with self._lock:
            if self._handle is failed:
                self._handle = _open(self.path)
                self._given_up.append(failed)
            return self._handle


def _open(path: Path) -> openslide.OpenSlide:
    """Open with OpenSlide, which knows formats by content."""
    if not path.is_file():
        raise DataError(f"{path}: no such slide", remedy="check the path")
    try:
        return openslide.OpenSlide(path)
    except OpenSlideUnsupportedFormatError:
        raise DataError(
            f"{path}: not a slide OpenSlide can read",
            remedy="copy it again if it should be one; convert plain images to a pyramidal tiled TIFF",
        ) from None
    except OpenSlideError as error:
        raise DataError(f"{path}: damaged slide: {error}", remedy="copy it again from the scanner") from None


def _over(rgba_HW4: NDArray[np.uint8], background: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Lay what is transparent (never scanned) over the background."""
    alpha_HW1 = rgba_HW4[..., 3:]
    if alpha_HW1.min() == 255:
        return np.ascontiguousarray(rgba_HW4[..., :3])
    share_HW1 = alpha_HW1.astype(np.float32) / 255
    under_3 = np.array(background, np.float32)
    laid_HW3 = rgba_HW4[..., :3].astype(np.float32) * share_HW1 + under_3 * (1 - share_HW1)
    rounded_HW3: NDArray[np.uint8] = np.rint(laid_HW3).astype(np.uint8)
    return rounded_HW3


def _number(text: str) -> float | None:
    """Return a finite number, or None if a header holds something else."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
