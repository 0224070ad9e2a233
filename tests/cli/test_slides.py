"""`fedpath slides`: every slide is accounted for on the screen, and only a run without any result is an error."""

from pathlib import Path

import pytest
import torch
from slide_files import small_slide
from typer.testing import CliRunner

from fedpath.cli.slides import app
from fedpath.core.bags import read_meta
from fedpath.core.encoders import build_encoder, save_encoder
from fedpath.core.errors import ConfigError, DataError


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


def test_an_encoder_that_does_not_exist_is_answered_with_those_that_do(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["encode", str(tmp_path), "--out", str(tmp_path / "out"), "--encoder", "nope"])
    assert isinstance(result.exception, ConfigError)
    assert "encoder 'nope' is unknown" in result.exception.message
    assert "available: seeded-conv, resnet50, resnet50-layer4, vit-small-16" in result.exception.remedy


def test_an_encoder_without_weights_says_where_they_are_named(tmp_path: Path) -> None:
    command = ["encode", str(tmp_path), "--out", str(tmp_path / "out"), "--encoder", "resnet50"]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, ConfigError)
    assert "encoder 'resnet50' comes without weights" in result.exception.message
    for hint in ("--weights FILE", "[encoder]", "site.toml", "https://", "licence"):
        assert hint in result.exception.remedy


def test_encode_takes_weights_from_a_file(tmp_path: Path) -> None:
    slides, out, file = tmp_path / "slides", tmp_path / "features", tmp_path / "encoder.safetensors"
    slides.mkdir()
    small_slide(slides / "good.tif", 0.5)
    tuned = build_encoder("seeded-conv")
    tuned.load_state_dict({name: 1.01 * tensor for name, tensor in tuned.state_dict().items()})
    sha256 = save_encoder(file, tuned, name="seeded-conv", base_sha256="0" * 64, tuning=None)
    command = ["encode", str(slides), "--out", str(out), "--weights", str(file), "--device", "cpu"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    meta = read_meta(out / "good.h5")
    assert (meta.encoder, meta.encoder_sha256) == ("seeded-conv", sha256)
    # Other weights, and a size that the encoder does not take: named before a slide is opened.
    wrong = CliRunner().invoke(app, [*command, "--encoder", "tiny-vit"])
    assert isinstance(wrong.exception, ConfigError)
    assert "holds encoder 'seeded-conv', not 'tiny-vit'" in wrong.exception.message
    size = CliRunner().invoke(app, ["encode", str(slides), "--out", str(out), "--encoder", "tiny-vit", "--patch", "64"])
    assert isinstance(size.exception, ConfigError)
    assert "takes patches of 128 px, not of 64" in size.exception.message


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is said where there is no GPU")
def test_a_gpu_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["encode", str(tmp_path), "--out", str(tmp_path / "out"), "--device", "cuda"])
    assert isinstance(result.exception, ConfigError)
    assert "--device cuda: torch finds no GPU" in result.exception.message
