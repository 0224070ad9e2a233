"""The native tiles of a slide that is a tiled TIFF, decoded without OpenSlide.

OpenSlide spends most of its time on composing regions, not on decoding. Here each tile is decoded once, kept while its
neighbours are read, and copied into place. What is decoded is compared with OpenSlide before it is trusted.

Sizes and places are in pixels of a level unless they say level 0.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from fedpath.client.slides.scaled_jpeg import SCALES, decode, whole_stream
from fedpath.client.slides.tile_cache import TileCache

_LIBRARIES = ("tifffile", "imagecodecs", "simplejpeg")
READER = "native tiles, " + ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
VENDORS = frozenset({"aperio", "generic-tiff"})
"""OpenSlide's names of the formats whose levels are grids of tiles without gaps or overlaps."""
_MOST_BYTES = 256 << 20
_ROWS, _MORE = 3, 64
"""Rows of tiles that are kept, and single ones: a walk row by row returns to a tile within two rows. Memory that is
used again soon is faster than fresh memory."""
_CODECS: dict[int, str] = {
    tifffile.COMPRESSION.NONE: "uncompressed",
    tifffile.COMPRESSION.LZW: "LZW",
    tifffile.COMPRESSION.ADOBE_DEFLATE: "deflate",
    tifffile.COMPRESSION.DEFLATE: "deflate",
    tifffile.COMPRESSION.JPEG: "JPEG",
    tifffile.COMPRESSION.APERIO_JP2000_RGB: "JPEG 2000",
    tifffile.COMPRESSION.APERIO_JP2000_YCBC: "JPEG 2000",
    tifffile.COMPRESSION.JPEG2000: "JPEG 2000",
}


class MissingTileError(Exception):
    """A tile is not in the file; what stands there is for OpenSlide to say."""


class BrokenTileError(Exception):
    """A tile is there and cannot be decoded."""


@dataclass(frozen=True, slots=True)
class TileGridOfLevel:
    """One level as the file stores it."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    codec: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    """Bytes of each tile, row by row; 0 for one that is missing."""
    decode: Callable[[bytes, int], NDArray[np.uint8]]
    """From a tile's bytes and place to RGB, where it is no JPEG; edge tiles may come whole or cut."""
    stream: Callable[[bytes], bytes] | None
    """From a tile's bytes to a JPEG file; None for other codecs."""

    @property
    def across(self) -> int:
        """Tiles in a row."""
        return -(-self.width // self.tile_width)

    def __len__(self) -> int:
        return len(self.offsets)


class NativeTiles:
    """The tiles of a slide's levels, from several threads at once."""

    def __init__(self, path: Path, levels: list[TileGridOfLevel]) -> None:
        """Open ``path``, whose grids `find_grids` found."""
        self.levels = levels
        self._file = os.open(path, os.O_RDONLY)
        wanted = max((_ROWS * grid.across + _MORE) * grid.tile_width * grid.tile_height * 3 for grid in levels)
        self._cache = TileCache(min(wanted, _MOST_BYTES))

    @property
    def in_words(self) -> str:
        """What kind of tiles these are, for people."""
        first = self.levels[0]
        return f"{first.codec} tiles of {first.tile_width}×{first.tile_height} px"

    def close(self) -> None:
        """Close the file and let the decoded tiles go."""
        os.close(self._file)
        self._cache.clear()

    def scale_for(self, level: int, ratio: float) -> int:
        """Return by how much tiles of a level are shrunk while they are decoded (1, 2, 4 or 8): at most ``ratio``."""
        grid = self.levels[level]
        if grid.stream is None:
            return 1
        # Tiles must shrink to whole pixels, or they would no longer join.
        fits = (s for s in SCALES if s <= ratio and grid.tile_width % s == 0 and grid.tile_height % s == 0)
        return max(fits, default=1)

    def holds(self, level: int, right: int, bottom: int, scale: int) -> bool:
        """Return whether a level at 1/``scale`` has whole pixels up to ``right`` and ``bottom``."""
        grid = self.levels[level]
        return right <= grid.width // scale and bottom <= grid.height // scale

    def region(
        self, level: int, x: int, y: int, width: int, height: int, *, scale: int, background: tuple[int, int, int]
    ) -> NDArray[np.uint8]:
        """Return a region of a level at 1/``scale`` of its size.

        Args:
            level: which.
            x, y: top-left corner, in pixels of the scaled level, at least 0.
            width, height: in the same pixels.
            scale: of ``scale_for``.
            background: RGB of what lies beyond the level.

        Returns:
            height × width × 3, RGB; not to be written to, it may be a tile that is kept.

        Raises:
            MissingTileError: a tile of the region is not in the file.
            BrokenTileError: one cannot be decoded.
        """
        grid = self.levels[level]
        tile_width, tile_height = grid.tile_width // scale, grid.tile_height // scale
        right, bottom = min(x + width, grid.width // scale), min(y + height, grid.height // scale)
        whole = (right - x, bottom - y) == (width, height) == (tile_width, tile_height)
        if whole and x % tile_width == 0 and y % tile_height == 0:
            return self.tile(level, x // tile_width, y // tile_height, scale)
        canvas_HW3 = np.empty((height, width, 3), np.uint8)
        if (right, bottom) != (x + width, y + height):
            canvas_HW3[:] = background
        for row in range(y // tile_height, -(-bottom // tile_height)):
            top = row * tile_height
            rows = slice(max(y, top), min(bottom, top + tile_height))
            for column in range(x // tile_width, -(-right // tile_width)):
                left = column * tile_width
                columns = slice(max(x, left), min(right, left + tile_width))
                tile_HW3 = self.tile(level, column, row, scale)
                canvas_HW3[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x] = tile_HW3[
                    rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
                ]
        return canvas_HW3

    def tile(self, level: int, column: int, row: int, scale: int = 1) -> NDArray[np.uint8]:
        """Return one tile at 1/``scale``, RGB, not to be written to.

        Raises:
            MissingTileError, BrokenTileError: as ``region``.
        """
        return self._cache.get(
            (level, column, row, scale), partial(self._decode, self.levels[level], column, row, scale)
        )

    def _decode(self, grid: TileGridOfLevel, column: int, row: int, scale: int) -> NDArray[np.uint8]:
        place = row * grid.across + column
        size = grid.sizes[place]
        if size == 0:
            raise MissingTileError(f"tile {column}, {row} is not in the file")
        raw = os.pread(self._file, size, grid.offsets[place])
        if len(raw) != size:
            raise BrokenTileError(f"tile {column}, {row}: the file ends within it")
        try:
            if grid.stream is None:
                return grid.decode(raw, place)
            return decode(grid.stream(raw), grid.tile_height, grid.tile_width, scale)
        # The codecs have their own kinds of errors, one a codec, and tifffile adds some.
        except Exception as error:
            raise BrokenTileError(f"tile {column}, {row}: {error}") from error


def find_grids(path: Path, sizes: list[tuple[int, int]]) -> list[TileGridOfLevel] | str:
    """Return the tile grids of a TIFF's levels, or why they cannot be read natively.

    Args:
        path: a TIFF.
        sizes: width and height of each level, as OpenSlide counts them.
    """
    try:
        with tifffile.TiffFile(path) as tiff:
            pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage) and page.is_tiled]
            pages += [sub for page in list(tiff.pages) for sub in _below(page) if sub.is_tiled]
            return _grids(pages, sizes)
    # tifffile reads what a file claims: a wrong claim ends in any kind of error.
    except Exception as error:  # noqa: BLE001
        return f"its directory cannot be read: {error}"


def _grids(pages: list[tifffile.TiffPage], sizes: list[tuple[int, int]]) -> list[TileGridOfLevel] | str:
    grids: list[TileGridOfLevel] = []
    for width, height in sizes:
        page = next((page for page in pages if (page.imagewidth, page.imagelength) == (width, height)), None)
        if page is None:
            return f"the level of {width}×{height} px is not stored as one grid of tiles"
        codec = _CODECS.get(page.compression)
        if codec is None:
            return f"tiles are compressed by {tifffile.COMPRESSION(page.compression).name}"
        if page.samplesperpixel != 3 or page.bitspersample != 8 or page.planarconfig != tifffile.PLANARCONFIG.CONTIG:
            return f"tiles have {page.samplesperpixel} colours of {page.bitspersample} bits"
        grid = _grid(page, codec)
        if len(grid) != grid.across * -(-height // grid.tile_height):
            return f"the level of {width}×{height} px has {len(grid)} tiles, which is not a full grid"
        grids.append(grid)
    return grids


def _grid(page: tifffile.TiffPage, codec: str) -> TileGridOfLevel:
    decode, tables = page.decode, page.jpegtables
    subtract = page.compression == tifffile.COMPRESSION.APERIO_JP2000_YCBC

    def to_rgb(raw: bytes, place: int) -> NDArray[np.uint8]:
        decoded: Any = decode(raw, place, jpegtables=tables)[0]
        tile_HW3: NDArray[np.uint8] = decoded.reshape(decoded.shape[-3:])
        return _rgb_of_ycbcr(tile_HW3) if subtract else tile_HW3

    stream = None
    if codec == "JPEG":
        stream = partial(whole_stream, tables=tables, rgb=page.photometric == tifffile.PHOTOMETRIC.RGB)
    return TileGridOfLevel(
        page.imagewidth,
        page.imagelength,
        page.tilewidth,
        page.tilelength,
        codec,
        tuple(page.dataoffsets),
        tuple(page.databytecounts),
        to_rgb,
        stream,
    )


def _below(page: object) -> list[tifffile.TiffPage]:
    """Return the pages below one (SubIFDs), where some programs keep the smaller levels."""
    series = getattr(page, "pages", None)
    return [sub for sub in series if isinstance(sub, tifffile.TiffPage)] if series is not None else []


_CHROMA = np.arange(256) - 128
_RED_OF_CR = np.rint(1.402 * _CHROMA).astype(np.int32)
_BLUE_OF_CB = np.rint(1.772 * _CHROMA).astype(np.int32)
_GREEN_OF_CB = np.rint(-0.34414 * 65536 * _CHROMA).astype(np.int32)
_GREEN_OF_CR = np.rint(-0.71414 * 65536 * _CHROMA).astype(np.int32) + (1 << 15)
"""JFIF's formula in whole numbers, green in 1/65536: with each entry rounded by itself, OpenSlide's to the bit."""


def _rgb_of_ycbcr(ycc_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return RGB of luminance and two colour differences."""
    y_HW = ycc_HW3[..., 0].astype(np.int32)
    cb_HW, cr_HW = ycc_HW3[..., 1], ycc_HW3[..., 2]
    red_HW = y_HW + _RED_OF_CR[cr_HW]
    green_HW = y_HW + ((_GREEN_OF_CB[cb_HW] + _GREEN_OF_CR[cr_HW]) >> 16)
    blue_HW = y_HW + _BLUE_OF_CB[cb_HW]
    rgb_HW3: NDArray[np.uint8] = np.stack([red_HW, green_HW, blue_HW], axis=-1).clip(0, 255).astype(np.uint8)
    return rgb_HW3
