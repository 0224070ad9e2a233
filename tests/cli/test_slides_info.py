"""`fedpath slides info` shows what a slide is, as text and as JSON."""

import json
from pathlib import Path

from slide_files import small_slide
from typer.testing import CliRunner

from fedpath.cli.slides import app
from fedpath.core.errors import DataError


def test_info_as_text_and_json(tmp_path: Path) -> None:
    small_slide(tmp_path / "a[1].tif", 0.5)
    small_slide(tmp_path / "b.tif", None)
    command = ["info", str(tmp_path / "a[1].tif"), str(tmp_path / "b.tif")]
    text = CliRunner().invoke(app, command)
    assert text.exit_code == 0, text.output
    for shown in ("a[1]", "1024 × 1024 px (0.5 × 0.5 mm)", "0.5 µm/px, from the slide", "not stated: give --slide-mpp"):
        assert shown in text.output
    told = json.loads(CliRunner().invoke(app, [*command, "--json", "--slide-mpp", "0.3"]).stdout)
    assert [one["mpp_from"] for one in told] == ["the slide", "--slide-mpp"]
    assert told[0]["levels"][1] == {"width": 512, "height": 512, "downsample": 2.0, "mpp": 1.0}


def test_one_bad_slide_does_not_hide_the_others(tmp_path: Path) -> None:
    small_slide(tmp_path / "good.tif", 0.5)
    for name in ("bad.svs", "worse.svs"):
        (tmp_path / name).write_text("no slide")
    paths = [str(tmp_path / name) for name in ("bad.svs", "good.tif", "worse.svs")]
    result = CliRunner().invoke(app, ["info", *paths])
    assert "0.5 µm/px, from the slide" in result.output
    assert isinstance(result.exception, DataError)
    assert "bad.svs" in result.exception.message
    assert "2 of 3 slides" in result.exception.message
