"""Tissue is drawn into files that can be looked at, edited, and read back; edits are not overwritten."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from slide_files import small_slide

from fedpath.client.slides.outlines import tissue_of
from fedpath.client.slides.reader import Slide
from fedpath.client.slides.review import draw_tissue
from fedpath.client.slides.synthetic.hospital import write_slide
from fedpath.client.slides.tissue import find_tissue


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    (tmp_path / "slides").mkdir()
    # A size that is no whole number of the overview's pixels.
    write_slide(tmp_path / "slides" / "a.tif", small_slide(tmp_path / "b.tif")[:1000, :1000], 0.5, levels=1)
    return tmp_path / "slides"


@pytest.mark.parametrize("kind", ["masks", "geojson"])
def test_what_is_written_is_read_back_to_the_pixel(slides: Path, tmp_path: Path, kind: str) -> None:
    (one,), bad = draw_tissue(slides, tmp_path / "out")
    assert bad == []
    with Slide(slides / "a.tif") as slide:
        found = find_tissue(slide)
        back, method = tissue_of(slide, tmp_path / "out" / kind)
    assert method.startswith(("mask sha256", "outlines sha256"))
    assert np.array_equal(back.mask_HW, found.mask_HW)
    assert back.mpp == found.mpp
    assert one.area_mm2 == pytest.approx(found.area_mm2)
    assert one.area_mm2 > 0.05


def test_edited_files_are_kept_and_can_be_drawn(slides: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    draw_tissue(slides, out)
    mask = out / "masks" / "a.png"
    edited = cv2.imread(str(mask), cv2.IMREAD_UNCHANGED)
    edited[:, : edited.shape[1] // 2] = 0
    cv2.imwrite(str(mask), edited)
    before = mask.read_bytes()
    (again,), _ = draw_tissue(slides, out)
    assert mask.read_bytes() == before
    assert str(mask) in again.kept
    (drawn,), _ = draw_tissue(slides, tmp_path / "second", outlines=out / "masks")
    assert drawn.area_mm2 < again.area_mm2
    assert drawn.area_mm2 == pytest.approx(float((edited > 0).sum()) * 64e-6)
    draw_tissue(slides, out, overwrite=True)
    assert mask.read_bytes() != before


def test_the_picture_shows_the_border(slides: Path, tmp_path: Path) -> None:
    draw_tissue(slides, tmp_path / "out")
    picture = cv2.imread(str(tmp_path / "out" / "pictures" / "a.jpg"))
    assert picture.shape[:2] == (1000, 1000)
    blue, green, red = (picture[..., channel].astype(int) for channel in range(3))
    assert ((green > red + 40) & (green > blue + 10)).sum() > 500


def test_a_bad_slide_does_not_stop_the_others(slides: Path, tmp_path: Path) -> None:
    (slides / "bad.svs").write_text("not a slide")
    drawn, bad = draw_tissue(slides, tmp_path / "out")
    assert [one.slide_id for one in drawn] == ["a"]
    assert [one.slide_id for one in bad] == ["bad"]


def test_a_slide_without_tissue_has_files_too(tmp_path: Path) -> None:
    (tmp_path / "slides").mkdir()
    write_slide(tmp_path / "slides" / "blank.tif", np.full((1024, 1024, 3), 243, np.uint8), 0.5, levels=1)
    (one,), _ = draw_tissue(tmp_path / "slides", tmp_path / "out")
    assert one.area_mm2 == 0
    assert (tmp_path / "out" / "geojson" / "blank.geojson").is_file()
