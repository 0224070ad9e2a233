"""`fedpath slides check` fails if a slide is bad, and its JSON stays JSON."""

import json
from pathlib import Path

from slide_files import small_slide
from typer.testing import CliRunner

from fedpath.cli.slides import app
from fedpath.core.errors import DataError


def test_good_slides_pass(tmp_path: Path) -> None:
    small_slide(tmp_path / "a.tif", 0.5)
    result = CliRunner().invoke(app, ["check", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "1 of 1 slides are good; 16 tiles read" in result.output
    assert "0.5 µm/px: 1" in result.output


def test_a_bad_slide_fails_the_check(tmp_path: Path) -> None:
    small_slide(tmp_path / "a.tif", 0.5)
    (tmp_path / "bad[1].svs").write_text("not a slide")
    result = CliRunner().invoke(app, ["check", str(tmp_path)])
    assert isinstance(result.exception, DataError)
    assert "1 of 2 slides cannot be used as they are" in result.exception.message
    assert "bad[1].svs: not a slide" in result.output
    told = json.loads(CliRunner().invoke(app, ["check", str(tmp_path), "--json", "--tiles", "2"]).stdout)
    assert [(one["slide_id"], one["good"], one["tiles"]) for one in told] == [("a", True, 4), ("bad[1]", False, 0)]
