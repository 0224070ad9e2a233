"""A check finds what would stop or spoil encoding, and says so slide by slide; info says what a slide is."""

from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest
import tifffile
from shared_data import shared_data
from slide_files import break_tile, drawn, small_slide

from fedpath.client.slides.check import check_slides
from fedpath.client.slides.info import FROM_OPTION, FROM_SLIDE, NOWHERE, SlideInfo, slide_info
from fedpath.client.slides.synthetic.hospital import write_slide
from fedpath.core.errors import DataError


def test_every_kind_of_bad_slide_is_found(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    small_slide(tmp_path / "good.tif")
    small_slide(tmp_path / "no-mpp.tif", None)
    small_slide(tmp_path / "twice.tif")
    small_slide(tmp_path / "again" / "twice.tif")
    (tmp_path / "text.svs").write_text("not a slide")
    small_slide(tmp_path / "broken.tif")
    for y in range(0, 1024, 256):
        for x in range(0, 1024, 256):
            break_tile(tmp_path / "broken.tif", x, y)
    seen = []
    checks = {c.slide_id: c for c in check_slides(tmp_path, progress=lambda *at: seen.append(at))}
    assert sorted(checks) == ["broken", "good", "no-mpp", "text", "twice"]
    assert [name for name, check in checks.items() if check.good] == ["good"]
    assert (checks["good"].mpp, checks["good"].tiles, checks["good"].failed) == (0.5, 16, 0)
    assert "no µm/px" in checks["no-mpp"].reason
    assert "--slide-mpp" in checks["no-mpp"].remedy
    assert "not a slide" in checks["text"].reason
    assert "2 slides of one name" in checks["twice"].reason
    # Level 1 is whole; its tiles are read.
    assert "8 of 16 random tiles cannot be read (8 of level 0)" in checks["broken"].reason
    assert [index for _, index, total in seen] == [0, 1, 2, 3]


def test_slides_that_state_no_resolution_are_good_if_it_is_given(tmp_path: Path) -> None:
    small_slide(tmp_path / "a.tif", None)
    (check,) = check_slides(tmp_path, slide_mpp=0.25)
    assert check.good
    assert check.mpp == 0.25


def test_the_same_tiles_are_read_every_time(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.tif", drawn(), 0.5, levels=1)
    for x in range(0, 2048, 512):
        break_tile(tmp_path / "a.tif", x, 512)
    first, again = (check_slides(tmp_path, tiles=20) for _ in range(2))
    assert first == again
    assert 0 < first[0].failed < 20


def test_a_folder_without_slides_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no slides inside"):
        check_slides(tmp_path)


def test_info_tells_where_the_resolution_comes_from(tmp_path: Path) -> None:
    small_slide(tmp_path / "a.tif", 0.5)
    small_slide(tmp_path / "b.tif", None)
    stated, given, unknown = (
        slide_info(tmp_path / name, slide_mpp=mpp) for name, mpp in (("a.tif", 0.3), ("b.tif", 0.3), ("b.tif", None))
    )
    assert (stated.mpp, stated.mpp_from, stated.size_mm) == (0.5, FROM_SLIDE, (0.512, 0.512))
    assert (given.mpp, given.mpp_from) == (0.3, FROM_OPTION)
    assert (unknown.mpp, unknown.mpp_from, unknown.size_mm) == (None, NOWHERE, None)
    assert [level.mpp for level in stated.levels] == [0.5, 1.0]
    assert [level.mpp for level in unknown.levels] == [None, None]
    with pytest.raises(DataError, match="no such slide"):
        slide_info(tmp_path / "c.tif")


def test_info_says_who_reads(tmp_path: Path) -> None:
    small_slide(tmp_path / "a.tif", 0.5)
    info = slide_info(tmp_path / "a.tif")
    assert bool(info.native) != bool(info.why_openslide)


def test_nothing_a_header_says_about_people_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    tifffile.imwrite(
        path,
        np.full((512, 512, 3), 200, np.uint8),
        tile=(256, 256),
        photometric="rgb",
        compression="jpeg",
        metadata=None,
        description="Aperio Image Library v1.0\r\n512x512|AppMag = 40|MPP = 0.25|User = Doe, Jane|Title = S12-3456",
    )
    info = slide_info(path)
    (check,) = check_slides(path)
    assert info.format == "aperio"
    assert check.good
    for secret in ("Doe", "S12-3456"):
        assert secret not in str(asdict(info)) + str(asdict(check))
    assert {field.name for field in fields(SlideInfo)} == {
        "slide_id", "path", "format", "bytes", "width", "height", "mpp", "mpp_from", "levels", "native",
        "why_openslide",
    }  # fmt: skip


def test_a_real_slide_is_good() -> None:
    data = shared_data()
    if data is None:
        pytest.skip("no shared data here")
    (check,) = check_slides(data / "slides" / "CMU-1-Small-Region.svs")
    assert check.good
    assert check.mpp == pytest.approx(0.499)
