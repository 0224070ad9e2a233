"""`fedpath slides`: every slide is accounted for on the screen, and only a run without any result is an error."""

from pathlib import Path

from slide_files import small_slide
from typer.testing import CliRunner

from fedpath.cli.slides import app
from fedpath.core.bags import read_meta
from fedpath.core.errors import DataError


def test_encode_says_what_became_of_every_slide(tmp_path: Path) -> None:
    slides, out = tmp_path / "slides", tmp_path / "features"
    slides.mkdir()
    small_slide(slides / "good.tif", 0.325)
    (slides / "bad[1].svs").write_text("not a slide")
    command = ["encode", str(slides), "--out", str(out), "--mpp", "0.6", "--patch", "96"]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    assert "bad[1].svs: not a slide" in first.output
    assert "remedy: copy it again" in first.output
    assert str(out) in first.output
    meta = read_meta(out / "good.h5")
    assert (meta.mpp, meta.patch_px, meta.patch_size_level0) == (0.6, 96, 177)
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0
    assert (out / "good.h5").is_file()


def test_a_run_without_any_result_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad.svs").write_text("not a slide")
    result = CliRunner().invoke(app, ["encode", str(tmp_path), "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, DataError)
    assert "no slide could be encoded" in result.exception.message


def test_draw_makes_a_hospital(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["draw", str(tmp_path / "A"), "--site", "A", "--index", "1", "--slides", "6"])
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "A" / "slides").glob("A-*.tif"))) == 6
    assert (tmp_path / "A" / "manifest.csv").is_file()
