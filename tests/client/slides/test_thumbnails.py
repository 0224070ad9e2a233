"""A thumbnail shows the whole slide, where its tissue ends, and which patches were kept."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from slide_files import small_slide

from fedpath.client.slides.reader import Slide
from fedpath.client.slides.thumbnails import EDGE, draw_contours, thumbnail
from fedpath.client.slides.tiles import TileGrid
from fedpath.client.slides.tissue import Tissue, find_tissue

NOTHING = np.zeros((0, 2), np.int64)


@pytest.fixture
def slide(tmp_path: Path) -> Slide:
    small_slide(tmp_path / "a.tif", 0.5)
    return Slide(tmp_path / "a.tif")


def grid_of(slide: Slide) -> TileGrid:
    return TileGrid.of(width=slide.width, height=slide.height, mpp_level0=slide.mpp, mpp=0.5, patch_px=128)


def decoded(stream: bytes) -> np.ndarray:
    assert stream[:2] == b"\xff\xd8"
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(stream, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def test_it_is_small_and_the_same_every_time(slide: Slide) -> None:
    tissue, grid = find_tissue(slide), grid_of(slide)
    corners = grid.corners_in(tissue, slide.mpp, 0.25)
    first, again = (thumbnail(slide, tissue, grid, corners) for _ in range(2))
    assert first == again
    assert decoded(first).shape == (EDGE, EDGE, 3)
    assert len(first) < 60_000


def test_kept_patches_are_tinted_where_they_lie(slide: Slide) -> None:
    tissue, grid = Tissue(np.zeros((64, 64), np.bool_), 8.0), grid_of(slide)
    with_one = decoded(thumbnail(slide, tissue, grid, np.array([[256, 512]])))
    without = decoded(thumbnail(slide, tissue, grid, NOTHING))
    changed = np.abs(with_one.astype(int) - without).max(axis=2) > 12
    rows, columns = np.nonzero(changed)
    scale = with_one.shape[1] / slide.width
    assert (columns.min(), columns.max() + 1) == pytest.approx((256 * scale, 384 * scale), abs=3)
    assert (rows.min(), rows.max() + 1) == pytest.approx((512 * scale, 640 * scale), abs=3)
    assert changed[rows.min() : rows.max(), columns.min() : columns.max()].mean() > 0.9


def test_the_contour_is_on_the_border_of_tissue() -> None:
    mask = np.zeros((50, 50), np.bool_)
    mask[10:30, 20:40] = True
    mask[15:20, 25:35] = False
    picture = np.full((200, 200, 3), 128, np.uint8)
    draw_contours(picture, Tissue(mask, 8.0))
    drawn = (picture != 128).any(axis=2)
    assert drawn[40, 81:159].all()
    assert drawn[40:119, 80].all()
    assert drawn[58:62, 110:130].any(axis=0).all()  # the hole's border
    assert not drawn[:36].any()
    assert not drawn[85:110, 90:150].any()


def test_without_an_overview_the_slide_is_read(slide: Slide) -> None:
    found = find_tissue(slide)
    by_outline = Tissue(found.mask_HW, found.mpp)
    pictures = [decoded(thumbnail(slide, t, grid_of(slide), NOTHING, edge=64)) for t in (found, by_outline)]
    assert np.abs(pictures[0].astype(int) - pictures[1]).mean() < 6
