"""`fedpath slides tissue` writes what can be looked at and edited; the edit decides which patches are encoded."""

import json
from pathlib import Path

from slide_files import small_slide
from typer.testing import CliRunner

from fedpath.cli.slides import app
from fedpath.core.bags import read_bag, read_meta
from fedpath.core.errors import DataError


def test_tissue_is_drawn_edited_and_encoded(tmp_path: Path) -> None:
    slides, out, features = tmp_path / "slides", tmp_path / "tissue", tmp_path / "features"
    slides.mkdir()
    small_slide(slides / "a.tif", 0.5)
    result = CliRunner().invoke(app, ["tissue", str(slides), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "mm² of tissue" in result.output
    edited = {"type": "Polygon", "coordinates": [[[0, 0], [256, 0], [256, 512], [0, 512], [0, 0]]]}
    (out / "geojson" / "a.geojson").write_text(json.dumps({"type": "Feature", "geometry": edited, "properties": {}}))
    command = ["encode", str(slides), "--out", str(features), "--patch", "128", "--outlines", str(out / "geojson")]
    encoded = CliRunner().invoke(app, command)
    assert encoded.exit_code == 0, encoded.output
    expected = [[x, y] for y in range(0, 512, 128) for x in range(0, 256, 128)]
    assert read_bag(features / "a.h5").coords_N2.tolist() == expected
    assert read_meta(features / "a.h5").tissue.startswith("outlines sha256")
    again = CliRunner().invoke(app, ["tissue", str(slides), "--out", str(out)])
    assert "2 masks and GeoJSON files were there already and are kept" in again.output


def test_nothing_drawn_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad.svs").write_text("no")
    result = CliRunner().invoke(app, ["tissue", str(tmp_path), "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, DataError)
    assert "no slide could be drawn" in result.exception.message
