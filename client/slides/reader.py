"""Read a slide at an exact resolution.

A patch is asked for by its level-0 corner and its edge in output pixels at a target µm/px. It is read from the coarsest
level at or finer than the target and brought to size by the area mean, so that its physical size never depends on the
scanner's magnification.

Native tiles are read where that is possible and gives OpenSlide's pixels, OpenSlide itself everywhere else.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fedpath.client.slides import native, openslide_file
from fedpath.client.slides.native import BrokenTileError, MissingTileError, NativeTiles
from fedpath.client.slides.openslide_file import OpenSlideFile, UnreadableError
from fedpath.client.slides.resample import area_mean
from fedpath.client.slides.trust import trusted_tiles
from fedpath.core.errors import DataError

__all__ = ["SUFFIXES", "Level", "Slide", "UnreadableError", "slide_sha256"]

SUFFIXES = frozenset({".bif", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide", ".tif", ".tiff", ".vms", ".vmu", ".dcm"})

PLAUSIBLE_MPP = (0.05, 20.0)
"""µm/px outside are placeholders: 72 dpi, the default of many programs, would be 353 µm/px."""
FINER = 1.01
"""A level counts as fine enough up to 1 % above the target: 4.0001× pyramids and 0.2505 µm/px scanners are common."""
UPSAMPLE = 1.1
"""A slide up to 10 % coarser than the target is resampled all the same (0.5024 or 0.52 for "20x"); beyond, refused."""


@dataclass(frozen=True, slots=True)
class Level:
    """A level of the pyramid."""

    width: int
    height: int
    downsample: float
    """Level-0 pixels a pixel."""
    mpp: float
    """µm/px."""


class Slide:
    """An open slide. It may be read by several threads at once.

    Attributes:
        path: the file.
        slide_id: its name without the suffix.
        mpp: µm/px of level 0.
        width, height: of level 0, in pixels.
        levels: of the pyramid, the largest first.
        vendor: OpenSlide's name of the format.
        native: the native tiles in words, for example "JPEG tiles of 240×240 px"; empty where OpenSlide reads.
        why_openslide: why it does; empty where native tiles are read.
    """

    def __init__(self, path: Path, *, slide_mpp: float | None = None) -> None:
        """Open ``path``, and see how it is best read.

        Args:
            path: the slide.
            slide_mpp: µm/px of level 0, used only if the slide itself states none.

        Raises:
            DataError: not a slide OpenSlide can read, or without µm/px.
        """
        self.path = path
        self.slide_id = path.stem
        self._openslide = OpenSlideFile(path)
        try:
            self.mpp = _resolution(path, self._openslide.stated_mpp, slide_mpp)
        except DataError:
            self._openslide.close()
            raise
        self.width, self.height = self._openslide.sizes[0]
        self._downsamples = self._openslide.downsamples
        self.levels = tuple(
            Level(width, height, downsample, self.mpp * downsample)
            for (width, height), downsample in zip(self._openslide.sizes, self._downsamples, strict=True)
        )
        self.vendor = self._openslide.vendor
        found = trusted_tiles(self._openslide)
        self._tiles: NativeTiles | None = None if isinstance(found, str) else found
        self.why_openslide = found if isinstance(found, str) else ""
        self.native = "" if isinstance(found, str) else found.in_words

    @property
    def background(self) -> tuple[int, int, int]:
        """RGB the slide states for what was not scanned, white by default."""
        return self._openslide.background

    @property
    def reader(self) -> str:
        """What reads the pixels and what stands for unscanned area, for the feature file."""
        by = f"{native.READER}, as {openslide_file.READER}" if self._tiles is not None else openslide_file.READER
        return f"{by}, background #{bytes(self.background).hex()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and let decoded tiles go; no thread may be reading."""
        self._openslide.close()
        if self._tiles is not None:
            self._tiles.close()

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
            size × size × 3, RGB; not to be written to.

        Raises:
            UnreadableError: the region cannot be decoded. The slide can be read elsewhere.
            DataError: the slide is coarser than ``mpp``, or cannot be opened again after an error.
        """
        level = self.level_for(mpp)
        if self._tiles is not None:
            try:
                return self._read_native(self._tiles, level, x, y, mpp, size)
            # A missing tile means what the format says, which OpenSlide knows; a broken one it may yet decode.
            except (MissingTileError, BrokenTileError):
                pass
        downsample = self._downsamples[level]
        window = _Window.of(x, y, downsample, size * mpp / self.mpp)
        # OpenSlide takes level-0 coordinates; where the downsample is not whole, what it starts at is within a pixel.
        origin = round(window.x * downsample), round(window.y * downsample)
        region_HWC = self._openslide.region(origin, level, (window.width, window.height))
        left, top = max(0.0, window.left - origin[0] / downsample), max(0.0, window.top - origin[1] / downsample)
        return area_mean(region_HWC, top, left, window.span, size)

    def _read_native(self, tiles: NativeTiles, level: int, x: int, y: int, mpp: float, size: int) -> NDArray[np.uint8]:
        # Tiles are shrunk while they are decoded as far as the target allows, then brought to its size.
        scale = tiles.scale_for(level, mpp * FINER / self.levels[level].mpp)
        downsample, edge = self._downsamples[level], size * mpp / self.mpp
        window = _Window.of(x, y, downsample * scale, edge)
        if scale > 1 and not tiles.holds(level, window.x + window.width, window.y + window.height, scale):
            # The slide ends within a shrunk pixel: what part of it is background only whole pixels tell.
            scale, window = 1, _Window.of(x, y, downsample, edge)
        region_HWC = tiles.region(
            level, window.x, window.y, window.width, window.height, scale=scale, background=self.background
        )
        return area_mean(region_HWC, window.top - window.y, window.left - window.x, window.span, size)


@dataclass(frozen=True, slots=True)
class _Window:
    """A square in a level's pixels, and the whole pixels that cover it."""

    left: float
    top: float
    span: float
    x: int
    y: int
    width: int
    height: int

    @classmethod
    def of(cls, x: int, y: int, downsample: float, edge: float) -> "_Window":
        """Return the window with corner (x, y) and edge ``edge``, all in level-0 pixels."""
        left, top, span = x / downsample, y / downsample, edge / downsample
        first_x, first_y = math.floor(left), math.floor(top)
        return cls(left, top, span, first_x, first_y, math.ceil(left + span) - first_x, math.ceil(top + span) - first_y)


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


def _resolution(path: Path, stated: list[float], slide_mpp: float | None) -> float:
    """Return µm/px of level 0: the slide's own, else ``slide_mpp``."""
    remedy = "state its µm/px with --slide-mpp (for example 0.25 for a 40x scan)"
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
