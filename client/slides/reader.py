"""Read a slide at an exact resolution.

A patch is asked for by its level-0 corner and its edge in output pixels at a target µm/px. It is read from the coarsest
level at or finer than the target and brought to size by the area mean, so that its physical size never depends on the
scanner's magnification.

Label and macro images, and header fields beyond the resolution, are never read: they can carry names.
"""

import hashlib
import math
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import openslide
from numpy.typing import NDArray
from openslide.lowlevel import OpenSlideError, OpenSlideUnsupportedFormatError

from fedpath.client.slides.resample import area_mean
from fedpath.core.errors import DataError

SUFFIXES = frozenset({".bif", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide", ".tif", ".tiff", ".vms", ".vmu", ".dcm"})
READER = f"openslide {openslide.__library_version__}"

PLAUSIBLE_MPP = (0.05, 20.0)
"""µm/px outside are placeholders: 72 dpi, the default of many programs, would be 353 µm/px."""
FINER = 1.01
"""A level counts as fine enough up to 1 % above the target: 4.0001× pyramids and 0.2505 µm/px scanners are common."""
UPSAMPLE = 1.1
"""A slide up to 10 % coarser than the target is resampled all the same (0.5024 or 0.52 for "20x"); beyond, refused."""


class UnreadableError(Exception):
    """One region of a slide could not be decoded; the slide itself goes on."""


class Slide:
    """An open slide.

    Attributes:
        path: the file.
        slide_id: its name without the suffix.
        mpp: µm/px of level 0.
        width, height: of level 0, in pixels.
        background: RGB the slide states for what was not scanned, white by default.
    """

    def __init__(self, path: Path, *, slide_mpp: float | None = None) -> None:
        """Open ``path``.

        Args:
            path: the slide.
            slide_mpp: µm/px of level 0, used only if the slide itself states none.

        Raises:
            DataError: not a slide OpenSlide can read, or without µm/px.
        """
        self.path = path
        self.slide_id = path.stem
        self._handle = _open(path)
        try:
            self.mpp = _resolution(path, self._handle, slide_mpp)
        except DataError:
            self._handle.close()
            raise
        self.width, self.height = self._handle.dimensions
        self._downsamples = tuple(float(d) for d in self._handle.level_downsamples)
        stated = self._handle.properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF")
        red, green, blue = bytes.fromhex(stated)
        self.background = (red, green, blue)

    @property
    def reader(self) -> str:
        """What reads the pixels and what stands for unscanned area, for the feature file."""
        return f"{READER}, background #{bytes(self.background).hex()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._handle.close()

    def level_for(self, mpp: float) -> int:
        """Return the coarsest level at or finer than ``mpp`` µm/px.

        Raises:
            DataError: the slide is too coarse; detail cannot be invented.
        """
        fine = [level for level, d in enumerate(self._downsamples) if self.mpp * d <= mpp * FINER]
        if not fine and self.mpp > mpp * UPSAMPLE:
            raise DataError(
                f"{self.path}: level 0 has {self.mpp:g} µm/px, coarser than the {mpp:g} µm/px asked for",
                remedy=f"encode the cohort with --mpp {self.mpp:g} or coarser",
            )
        return max(fine, key=self._downsamples.__getitem__, default=0)

    def whole_mpp(self, mpp: float) -> float:
        """Return the µm/px nearest to ``mpp`` at which an output pixel is a whole number of a level's pixels.

        Overviews are read there: borders fall between pixels, and resampling is at its fastest.
        """
        level_mpp = self.mpp * self._downsamples[self.level_for(max(mpp, self.mpp))]
        return level_mpp * max(1, round(mpp / level_mpp))

    def read(self, x: int, y: int, *, mpp: float, size: int) -> NDArray[np.uint8]:
        """Read a square patch.

        Args:
            x, y: its top-left corner in level-0 pixels, on the slide; what reaches beyond the slide's right or lower
                border has the background's colour.
            mpp: resolution of the result in µm/px.
            size: edge of the result in pixels.

        Returns:
            size × size × 3, RGB.

        Raises:
            UnreadableError: the region cannot be decoded. The slide has been reopened and can be read elsewhere.
            DataError: the slide is coarser than ``mpp``, or cannot be reopened.
        """
        level = self.level_for(mpp)
        downsample = self._downsamples[level]
        # The window in the level's pixels, and the whole pixels that cover it.
        left, top, span = x / downsample, y / downsample, size * mpp / self.mpp / downsample
        first_x, first_y = math.floor(left), math.floor(top)
        covered = math.ceil(left + span) - first_x, math.ceil(top + span) - first_y
        # OpenSlide takes level-0 coordinates; where the downsample is not whole, what it starts at is within a pixel.
        origin = round(first_x * downsample), round(first_y * downsample)
        region_HWC = self._region(origin, level, covered)
        left, top = max(0.0, left - origin[0] / downsample), max(0.0, top - origin[1] / downsample)
        return area_mean(region_HWC, top, left, span, size)

    def _region(self, origin: tuple[int, int], level: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Read RGB (H×W×3) of ``size`` (width, height) level pixels; beyond the slide there is background."""
        downsample, limits = self._downsamples[level], self._handle.level_dimensions[level]
        # OpenSlide would fill what lies beyond with transparency, at the price of real pixels.
        inside = [
            max(1, min(length, limit - round(start / downsample)))
            for length, limit, start in zip(size, limits, origin, strict=True)
        ]
        try:
            rgba_HW4 = np.asarray(self._handle.read_region(origin, level, (inside[0], inside[1])))
        except OpenSlideError as error:
            # One bad tile leaves the handle in error for good: lose the tile, not the slide.
            self._handle.close()
            self._handle = _open(self.path)
            raise UnreadableError(str(error)) from error
        rgb_HW3 = _over(rgba_HW4, self.background)
        if (inside[0], inside[1]) == size:
            return rgb_HW3
        canvas_HW3 = np.full((size[1], size[0], 3), self.background, np.uint8)
        canvas_HW3[: inside[1], : inside[0]] = rgb_HW3
        return canvas_HW3


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


def slide_sha256(path: Path) -> str:
    """Return the SHA-256 of a slide: of its file and, for formats with one (MIRAX), of the folder beside it.

    Raises:
        DataError: it cannot be read.
    """
    digest = hashlib.sha256()
    companion = path.with_suffix("")
    parts = [path, *sorted(p for p in companion.rglob("*") if p.is_file())] if companion.is_dir() else [path]
    try:
        for part in parts:
            with part.open("rb") as file:
                own = hashlib.file_digest(file, "sha256")
            if len(parts) == 1:
                return own.hexdigest()
            digest.update(part.name.encode() + b"\0" + own.digest())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}", remedy="check the disk and permissions") from None
    return digest.hexdigest()


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


def _resolution(path: Path, handle: openslide.OpenSlide, slide_mpp: float | None) -> float:
    """Return µm/px of level 0: the slide's own, else ``slide_mpp``."""
    remedy = "state its µm/px with --slide-mpp (for example 0.25 for a 40x scan)"
    texts = [handle.properties.get(key) for key in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)]
    stated = [value for text in texts if text is not None and (value := _number(text)) is not None]
    low, high = PLAUSIBLE_MPP
    if len(stated) < 2 or not all(low <= value <= high for value in stated):
        if slide_mpp is not None:
            return slide_mpp
        found = f"implausible µm/px {stated[0]:g}" if stated else "no µm/px"
        raise DataError(f"{path}: the slide states {found}", remedy=remedy)
    if abs(stated[0] - stated[1]) > 0.01 * stated[0]:
        raise DataError(
            f"{path}: pixels are not square ({stated[0]:g} × {stated[1]:g} µm)", remedy="convert it to square pixels"
        )
    return sum(stated) / 2


def _number(text: str) -> float | None:
    """Return a finite number, or None if a header holds something else."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
