"""Whether native tiles may be read instead of asking OpenSlide: some tiles of every level are read both ways."""

from collections.abc import Iterator
from itertools import zip_longest

import cv2
import numpy as np
from numpy.typing import NDArray

from fedpath.client.slides.native import (
    VENDORS,
    BrokenTileError,
    MissingTileError,
    NativeTiles,
    TileGridOfLevel,
    find_grids,
)
from fedpath.client.slides.openslide_file import OpenSlideFile, UnreadableError

_COMPARED = 2
"""Tiles of each level that are compared."""
_TRIED = 6
"""Tiles of each kind that are looked at before giving up: some may be missing or broken."""
_NEAR = 3.0
"""Grey levels, on average, up to which pixels are taken for the same where OpenSlide interpolates between them."""
_SCALED_NEAR = 2.0
"""Grey levels, on average, by which tiles shrunk while decoding may differ from area means."""


def trusted_tiles(slide: OpenSlideFile) -> NativeTiles | str:
    """Return a slide's native tiles, or why they are not to be read."""
    if slide.vendor not in VENDORS:
        return f"format {slide.vendor}"
    grids = find_grids(slide.path, list(slide.sizes))
    if isinstance(grids, str):
        return grids
    tiles = NativeTiles(slide.path, grids)
    for level in range(len(grids)):
        fault = _fault(slide, tiles, level)
        if fault:
            tiles.close()
            return fault
    return tiles


def _fault(slide: OpenSlideFile, tiles: NativeTiles, level: int) -> str:
    """Return what is wrong with a level's native tiles; empty if nothing is."""
    grid, compared = tiles.levels[level], 0
    for column, row in _candidates(grid):
        theirs = _theirs(slide, grid, level, column, row)
        if theirs is None:
            continue
        picture_HW3, exact = theirs
        height, width = picture_HW3.shape[:2]
        try:
            mine_HW3 = tiles.tile(level, column, row)[:height, :width]
        except MissingTileError:
            continue
        except BrokenTileError as error:
            return f"OpenSlide decodes a tile that fails here: {error}"
        if mine_HW3.shape != picture_HW3.shape:
            return f"a tile of level {level} has another size than the file says"
        difference_HW3 = cv2.absdiff(mine_HW3, picture_HW3)
        if difference_HW3.max() > 0 if exact else difference_HW3.mean() > _NEAR:
            return f"the decoded tiles of level {level} differ from OpenSlide's"
        if not _scales_well(tiles, level, column, row):
            return f"the tiles of level {level} cannot be shrunk while they are decoded"
        compared += 1
        if compared == _COMPARED:
            return ""
    # A level of one tile has no second one to compare.
    return "" if compared else f"no tile of level {level} could be compared with OpenSlide's"


def _candidates(grid: TileGridOfLevel) -> Iterator[tuple[int, int]]:
    """Yield columns and rows of tiles in an order that depends on the file's directory only.

    Every other one is among the heaviest eighth, which show something; blank glass looks the same in any colours.
    """
    random = np.random.default_rng(0)
    heaviest = np.argsort(grid.sizes, kind="stable")[-max(1, len(grid) // 8) :]
    heavy, any_ = random.permutation(heaviest)[:_TRIED], random.permutation(len(grid))[:_TRIED]
    order = [place for pair in zip_longest(heavy, any_) for place in pair if place is not None]
    for place in dict.fromkeys(int(place) for place in order):
        if grid.sizes[place]:
            row, column = divmod(place, grid.across)
            yield column, row


def _theirs(
    slide: OpenSlideFile, grid: TileGridOfLevel, level: int, column: int, row: int
) -> tuple[NDArray[np.uint8], bool] | None:
    """Return a tile as OpenSlide reads it, and whether its pixels lie exactly on the tile's; None if it cannot."""
    left, top = column * grid.tile_width, row * grid.tile_height
    size = min(grid.tile_width, grid.width - left), min(grid.tile_height, grid.height - top)
    downsample = slide.downsamples[level]
    origin = round(left * downsample), round(top * downsample)
    try:
        picture_HW3 = slide.region(origin, level, size)
    except UnreadableError:
        return None
    exact = all(abs(start / downsample - wanted) < 1e-9 for start, wanted in zip(origin, (left, top), strict=True))
    return picture_HW3, exact


def _scales_well(tiles: NativeTiles, level: int, column: int, row: int) -> bool:
    """Return whether a tile decoded at a half is near the area mean of the whole one."""
    scale = tiles.scale_for(level, 2)
    if scale == 1:
        return True
    whole_HW3 = tiles.tile(level, column, row)
    grid = tiles.levels[level]
    if whole_HW3.shape[:2] != (grid.tile_height, grid.tile_width):
        return True  # cut at the border: another tile tells
    try:
        half_HW3 = tiles.tile(level, column, row, scale)
    except BrokenTileError:
        return False
    size = grid.tile_width // scale, grid.tile_height // scale
    mean_HW3 = cv2.resize(whole_HW3, size, interpolation=cv2.INTER_AREA)
    return half_HW3.shape == mean_HW3.shape and float(cv2.absdiff(half_HW3, mean_HW3).mean()) <= _SCALED_NEAR
