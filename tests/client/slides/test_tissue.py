"""Tissue is found on strong, pale and grey slides alike, and not on clean glass."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from slide_files import blank, break_tile, drawn, small_slide

from fedpath.client.slides.reader import Slide
from fedpath.client.slides.synthetic.draw import SIZE
from fedpath.client.slides.synthetic.hospital import write_slide
from fedpath.client.slides.tiles import TileGrid
from fedpath.client.slides.tissue import Tissue, find_tissue, read_overview, segment


def overview_with(colour: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Glass with a disc of one colour, and where the disc is."""
    image = blank()
    disc = np.zeros(image.shape[:2], np.uint8)
    cv2.circle(disc, (300, 280), 150, 1, -1)
    grain = np.random.default_rng(1).normal(scale=1.5, size=(*disc.shape, 1))
    image[disc > 0] = np.clip(np.array(colour) + grain, 0, 255)[disc > 0].astype(np.uint8)
    return image, disc > 0


def agreement(found: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union."""
    return float((found & truth).sum() / (found | truth).sum())


@pytest.mark.parametrize(
    "colour",
    [
        pytest.param((170, 90, 160), id="strong"),
        pytest.param((228, 208, 222), id="pale"),
        pytest.param((232, 220, 226), id="very-pale"),
        pytest.param((205, 204, 201), id="grey"),
    ],
)
def test_tissue_of_any_strength_is_found(colour: tuple[int, int, int]) -> None:
    image, truth = overview_with(colour)
    assert agreement(segment(image), truth) > 0.95


@pytest.mark.parametrize("colour", [(230, 212, 224), (232, 220, 226)])
def test_pale_tissue_beside_a_pen_mark_is_found(colour: tuple[int, int, int]) -> None:
    # Otsu alone separates the pen from everything else.
    image, truth = overview_with(colour)
    image[20:60, 20:580] = (20, 40, 200)
    truth[20:60, 20:580] = True
    assert agreement(segment(image), truth) > 0.95


def scanned(image: np.ndarray) -> np.ndarray:
    """As JPEG brings it."""
    _, stream = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 85])
    return np.ascontiguousarray(cv2.imdecode(stream, cv2.IMREAD_COLOR)[..., ::-1])


@pytest.mark.parametrize("colour", [(170, 90, 160), (228, 208, 222), (205, 204, 201), None])
def test_black_borders_are_not_tissue_and_hide_none(colour: tuple[int, int, int] | None) -> None:
    image, truth = overview_with(colour) if colour else (blank(), np.zeros((600, 600), np.bool_))
    border = np.ones(truth.shape, np.bool_)
    border[60:-60, 60:-60] = False
    # Black with noise: of any saturation.
    image[border] = np.random.default_rng(2).integers(0, 9, (int(border.sum()), 3))
    found = segment(scanned(image))
    assert not found[border].any()
    assert not found.any() if colour is None else agreement(found, truth & ~border) > 0.95


def test_a_black_pen_is_not_tissue_and_a_dark_fold_is() -> None:
    image, truth = overview_with((170, 90, 160))
    cv2.line(image, (50, 550), (550, 570), (25, 25, 28), 12)
    cv2.circle(image, (300, 280), 40, (70, 30, 90), -1)
    assert agreement(segment(scanned(image)), truth) > 0.95


def test_clean_glass_is_not_tissue() -> None:
    assert segment(blank()).mean() == 0


def test_a_slide_full_of_tissue_is_tissue() -> None:
    image = np.full((300, 300, 3), (200, 150, 190), np.uint8)
    image[::3] -= 12
    assert segment(image).mean() > 0.99


def test_all_of_a_drawn_slide_is_found_however_pale(tmp_path: Path) -> None:
    image = drawn(seed=3)
    for name, strength in (("full", 1.0), ("pale", 0.25)):
        pale = np.rint(255 - (255 - image.astype(float)) * strength).astype(np.uint8)
        small = cv2.resize(pale, (SIZE // 16, SIZE // 16), interpolation=cv2.INTER_AREA)
        truth = cv2.resize(image, (SIZE // 16, SIZE // 16), interpolation=cv2.INTER_AREA)[..., 1] < 225
        assert agreement(segment(small), truth) > 0.85, name


def test_overviews_of_any_coarseness_are_the_slide(tmp_path: Path) -> None:
    # Far coarser than the only level: blocks are then smaller, so that none takes the memory of the whole slide.
    image = small_slide(tmp_path / "a.tif", 0.5)
    write_slide(tmp_path / "flat.tif", image, 0.5, levels=1)
    with Slide(tmp_path / "flat.tif") as slide:
        fine_HW3, _ = read_overview(slide, 8.0)
        coarse_HW3, unreadable_HW = read_overview(slide, 64.0)
    assert coarse_HW3.shape[0] == round(slide.height * 0.5 / 64)
    assert not unreadable_HW.any()
    by_eight = cv2.resize(fine_HW3, coarse_HW3.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(by_eight.astype(int) - coarse_HW3)[:-1, :-1].mean() < 4


def test_shares_are_of_the_patch() -> None:
    mask = np.zeros((100, 100), np.bool_)
    mask[:, :50] = True
    tissue = Tissue(mask, 8.0)
    # Level 0 has 0.5 µm/px: 16 of its pixels a pixel of the mask.
    xs, ys = np.array([0, 640, 720, 800, 1472]), np.array([0, 160, 320, 480, 1472])
    assert tissue.shares(xs, ys, 128, 0.5).tolist() == [1.0, 1.0, 0.625, 0.0, 0.0]
    assert tissue.area_mm2 == pytest.approx(5000 * 64e-6)


def test_the_grid_is_global_and_inside_the_slide() -> None:
    grid = TileGrid.of(width=4000, height=3001, mpp_level0=0.325, mpp=0.5, patch_px=128)
    assert grid.patch_size_level0 == 197
    corners = grid.corners_in(Tissue(np.ones((122, 163), np.bool_), 8.0), 0.325, 0.5)
    assert len(corners) == (4000 // 197) * (3001 // 197)
    assert (corners % 197 == 0).all()
    assert (corners + 197 <= (4000, 3001)).all()
    assert corners[:2].tolist() == [[0, 0], [197, 0]]


def test_unreadable_regions_are_kept_to_be_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    # Glass in the corner; there is one level, so the overview needs the broken tile.
    write_slide(path, drawn(seed=3), 0.5, levels=1)
    with Slide(path) as slide:
        whole = find_tissue(slide)
    break_tile(path, 10, 10)
    with Slide(path) as slide:
        found = find_tissue(slide)
    assert found.mask_HW[:16, :16].all()
    assert not whole.mask_HW[:16, :16].any()
    assert np.array_equal(found.mask_HW[128:], whole.mask_HW[128:])


def test_an_overview_of_a_slide_without_pyramid_is_the_same(tmp_path: Path) -> None:
    small_slide(tmp_path / "a.tif", 0.25)
    with Slide(tmp_path / "a.tif") as slide:
        tissue = find_tissue(slide)
        assert tissue.mpp == pytest.approx(8.0)
        assert tissue.mask_HW.shape == (64, 64)
