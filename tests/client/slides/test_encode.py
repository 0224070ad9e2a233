"""A folder of slides becomes feature files; bad slides are named, whole ones are not done twice."""

import fcntl
import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from shared_data import shared_data
from slide_files import blank, break_tile, small_slide, striped_tiff

from fedpath.client.slides.encode import REPORT, encode_folder
from fedpath.client.slides.encoders import Encoder, describe
from fedpath.client.slides.outcome import EncodeProgress, EncodeReport
from fedpath.client.slides.reader import Slide
from fedpath.client.slides.settings import EncodeSettings
from fedpath.client.slides.synthetic.hospital import write_slide
from fedpath.core.bags import read_bag, read_failed, read_meta
from fedpath.core.errors import ConfigError, DataError
from fedpath.core.files import sha256_file


def encode(slides: Path, out: Path, **changes: object) -> EncodeReport:
    known = {field.name for field in fields(EncodeSettings)}
    settings: dict[str, object] = {"mpp": 0.5, "patch_px": 128} | {k: v for k, v in changes.items() if k in known}
    others: dict[str, object] = {"encoder": "seeded-conv"} | {k: v for k, v in changes.items() if k not in known}
    return encode_folder(slides, out, EncodeSettings(**settings), **others)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "one.tif"
    small_slide(path, 0.325)
    return path


def test_features_are_of_the_patches_at_their_coordinates(slide: Path, tmp_path: Path) -> None:
    told: list[EncodeProgress] = []
    report = encode(slide.parent, tmp_path, progress=told.append)
    assert [result.slide_id for result in report.done] == ["one"]
    assert report.skipped == report.quarantined == ()
    bag, meta = read_bag(tmp_path / "one.h5"), read_meta(tmp_path / "one.h5")
    assert meta.mpp_level0 == pytest.approx(0.325, rel=1e-6)
    assert (meta.mpp, meta.patch_px, meta.patch_size_level0) == (0.5, 128, 197)
    assert (meta.level0_width, meta.level0_height) == (1575, 1575)
    assert meta.encoder_sha256 == describe("seeded-conv").sha256
    assert meta.slide_sha256 == sha256_file(slide)
    assert meta.failed_tiles == 0
    assert len(bag) == report.done[0].patches > 20
    assert (bag.coords_N2 % 197 == 0).all()
    # The rows belong to the coordinates.
    x, y = bag.coords_N2[7].tolist()
    with Slide(slide) as opened:
        patch = opened.read(x, y, mpp=0.5, size=128)
    alone = Encoder("seeded-conv").encode(patch[None])
    assert np.allclose(alone, bag.features_ND[7].numpy(), atol=0.01)
    assert told[0].tiles_total == 0
    assert told[-1].tiles_done == told[-1].tiles_total == len(bag)


def test_the_same_slide_gives_the_same_bits(slide: Path, tmp_path: Path) -> None:
    for out in ("a", "b"):
        encode(slide, tmp_path / out)
    first, second = (read_bag(tmp_path / out / "one.h5") for out in "ab")
    assert first.features_ND.equal(second.features_ND)
    assert first.coords_N2.equal(second.coords_N2)


def test_a_second_run_skips_by_content(slide: Path, tmp_path: Path) -> None:
    slides, out = tmp_path / "slides", tmp_path / "out"
    slides.mkdir()
    shutil.copy(slide, slides / "one.tif")
    small_slide(slides / "two.tif", 0.5, seed=1)
    first = encode(slides, out)
    again = encode(slides, out)
    assert not again.done
    assert again.skipped == tuple(replace(result, seconds=None) for result in first.done)
    # A truncated feature file, another slide under the same name, another setting: each is done anew.
    whole = (out / "one.h5").read_bytes()
    (out / "one.h5").write_bytes(whole[: len(whole) // 2])
    small_slide(slides / "two.tif", 0.5, seed=2)
    assert [result.slide_id for result in encode(slides, out).done] == ["one", "two"]
    assert len(read_bag(out / "one.h5")) == first.done[0].patches
    assert len(encode(slides, out).skipped) == 2
    assert len(encode(slides, out, patch_px=96).done) == 2
    assert len(encode(slides, out, mpp=0.6, patch_px=96).done) == 2


def test_bad_slides_are_quarantined_and_the_run_goes_on(slide: Path, tmp_path: Path) -> None:
    slides, out = tmp_path / "slides", tmp_path / "out"
    (slides / "deeper").mkdir(parents=True)
    shutil.copy(slide, slides / "deeper" / "good.tif")
    (slides / "text.svs").write_text("not a slide")
    (slides / "notes.txt").write_text("not meant to be one")
    striped_tiff(slides / "striped.tif")
    small_slide(slides / "bare.tif", None)
    write_slide(slides / "glass.tif", blank(1024), 0.5)
    write_slide(slides / "coarse.tif", np.full((600, 600, 3), 180, np.uint8), 1.0)
    whole = slide.read_bytes()
    (slides / "truncated.tif").write_bytes(whole[: len(whole) // 3])
    report = encode(slides, out)
    assert [result.slide_id for result in report.done] == ["good"]
    reasons = {bad.slide_id: bad.reason for bad in report.quarantined}
    assert set(reasons) == {"text", "striped", "bare", "glass", "coarse", "truncated"}
    assert "not a slide" in reasons["text"]
    assert "no µm/px" in reasons["bare"]
    assert "no patch with tissue" in reasons["glass"]
    assert "coarser" in reasons["coarse"]
    assert all(bad.remedy and bad.slide_id in bad.reason for bad in report.quarantined)
    assert report.ignored == ("notes.txt",)
    assert [path.name for path in out.glob("*.h5")] == ["good.h5"]
    written = json.loads((out / REPORT).read_text())
    assert {bad["slide_id"] for bad in written["quarantined"]} == set(reasons)
    assert written["settings"]["encoder"]["name"] == "seeded-conv"
    # The slide without µm/px only needed to be told.
    assert "bare" in [result.slide_id for result in encode(slides, out, slide_mpp=0.5).done]
    assert read_meta(out / "bare.h5").mpp_level0 == 0.5


def test_unreadable_patches_are_marked_not_whitened(slide: Path, tmp_path: Path) -> None:
    path = tmp_path / "one.tif"
    shutil.copy(slide, path)
    before = encode(path, tmp_path / "before")
    break_tile(path, 800, 800)
    report = encode(path, tmp_path / "after")
    assert 1 <= report.done[0].failed <= 9
    assert report.done[0].patches + report.done[0].failed == before.done[0].patches
    target = tmp_path / "after" / "one.h5"
    failed = {tuple(corner) for corner in read_failed(target).tolist()}
    assert len(failed) == report.done[0].failed == read_meta(target).failed_tiles
    assert all(512 - 198 < x < 1024 and 512 - 198 < y < 1024 for x, y in failed)
    kept = {tuple(corner) for corner in read_bag(target).coords_N2.tolist()}
    assert not kept & failed
    assert encode(path, tmp_path / "after").skipped[0].failed == report.done[0].failed


def test_a_slide_that_is_mostly_unreadable_is_quarantined(slide: Path, tmp_path: Path) -> None:
    path = tmp_path / "one.tif"
    shutil.copy(slide, path)
    encode(path, tmp_path / "out")
    for y in range(100, 1575, 256):
        for x in range(100, 1575, 256):
            break_tile(path, x, y)
    report = encode(path, tmp_path / "out")
    assert "cannot be read" in report.quarantined[0].reason
    # Its earlier features must not be trained on as if nothing had happened; nor are they thrown away.
    assert "one.h5.outdated" in report.quarantined[0].remedy
    assert (tmp_path / "out" / "one.h5.outdated").is_file()
    assert not (tmp_path / "out" / "one.h5").exists()


def test_a_folder_without_slides_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        encode(tmp_path / "absent", tmp_path / "out")
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="no slides inside"):
        encode(tmp_path / "a", tmp_path / "out")


def test_slides_of_one_name_are_quarantined_and_the_others_encoded(slide: Path, tmp_path: Path) -> None:
    for name in ("two.tif", "one.tif", "b/one.tif"):
        (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(slide, tmp_path / "a" / name)
    report = encode(tmp_path / "a", tmp_path / "out")
    assert [result.slide_id for result in report.done] == ["two"]
    (bad,) = report.quarantined
    assert bad.slide_id == "one"
    assert all(str(tmp_path / "a" / name) in bad.reason for name in ("one.tif", "b/one.tif"))
    assert "rename" in bad.remedy
    assert not (tmp_path / "out" / "one.h5").exists()


_WRONG = {"mpp": 0.0, "patch_px": 8, "threads": 0, "batch": 0, "readers": 0, "max_failed": 1.5, "slide_mpp": -1.0}


@pytest.mark.parametrize("wrong", [{"mpp": float("nan")}, *({key: value} for key, value in _WRONG.items())], ids=str)
def test_impossible_settings_are_refused(slide: Path, tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="--"):
        encode(slide, tmp_path, **wrong)


def test_two_runs_do_not_share_a_folder(slide: Path, tmp_path: Path) -> None:
    with (tmp_path / ".encode.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another run"):
            encode(slide, tmp_path)
    # A lock left by a process that died holds nobody up.
    assert len(encode(slide, tmp_path).done) == 1


@pytest.mark.skipif(shared_data() is None, reason="needs the shared data folder")
def test_a_real_slide(tmp_path: Path) -> None:
    folder = shared_data()
    assert folder is not None
    report = encode(folder / "slides", tmp_path)
    assert [result.mpp_level0 for result in report.done] == [0.499]
    bag, meta = read_bag(tmp_path / "CMU-1-Small-Region.h5"), read_meta(tmp_path / "CMU-1-Small-Region.h5")
    assert (meta.mpp_level0, meta.level0_width, meta.level0_height) == (0.499, 2220, 2967)
    assert meta.patch_size_level0 == bag.patch_size_level0 == 128
    assert (bag.coords_N2 % 128 == 0).all()
    # Tissue runs down the middle; the right and upper left are glass.
    assert 150 < len(bag) < 190
    corners = {tuple(corner) for corner in bag.coords_N2.tolist()}
    assert (1024, 1408) in corners
    assert (0, 256) not in corners
    assert (2048, 256) not in corners


def test_only_the_slides_that_are_named_are_encoded_each_with_its_own_resolution(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        small_slide(tmp_path / "slides" / f"{name}.tif", None)
    report = encode(tmp_path / "slides", tmp_path / "out", slide_mpp=1.0, only={"a": 0.5, "c": 0.45})
    assert [(result.slide_id, result.mpp_level0) for result in report.done] == [("a", 0.5), ("c", 0.45)]
    assert report.quarantined == ()
    assert sorted(path.name for path in (tmp_path / "out").glob("*.h5")) == ["a.h5", "c.h5"]


def test_more_readers_and_other_batches_give_the_same_features(slide: Path, tmp_path: Path) -> None:
    encode(slide, tmp_path / "a", readers=1, batch=64)
    encode(slide, tmp_path / "b", readers=4, batch=7)
    one, other = read_bag(tmp_path / "a" / "one.h5"), read_bag(tmp_path / "b" / "one.h5")
    assert np.array_equal(one.coords_N2, other.coords_N2)
    assert np.array_equal(one.features_ND, other.features_ND)


def test_the_budget_of_failed_patches_is_the_users(slide: Path, tmp_path: Path) -> None:
    path = tmp_path / "one.tif"
    shutil.copy(slide, path)
    break_tile(path, 800, 800)
    assert encode(path, tmp_path / "out", max_failed=0.9).done[0].failed > 0
    (bad,) = encode(path, tmp_path / "strict", max_failed=0.0).quarantined
    assert "more than 0%" in bad.reason


def test_each_slide_has_a_small_picture(slide: Path, tmp_path: Path) -> None:
    encode(slide, tmp_path)
    picture = cv2.imread(str(tmp_path / "thumbnails" / "one.jpg"))
    assert max(picture.shape[:2]) == 400


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(slide: Path) -> None:
    told: list[EncodeProgress] = []
    with pytest.raises(ConfigError, match="cannot be written to") as caught:
        encode(slide, Path("/proc/features"), progress=told.append)
    assert "--out" in caught.value.remedy
    assert told == []
