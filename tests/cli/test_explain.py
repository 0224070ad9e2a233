"""``fedpath explain`` as a person runs it: what it prints and the code it ends with."""

import json
from pathlib import Path

import pytest
from command import fedpath
from slide_files import small_slide

from fedpath.client.slides.encode import encode_folder
from fedpath.client.slides.settings import EncodeSettings
from fedpath.core.bags import read_bag
from fedpath.core.models import build_model
from fedpath.core.models.checkpoint import save_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two encoded slides, and a model for their features and one for those of another encoder."""
    (tmp_path / "slides").mkdir()
    for number in range(2):
        small_slide(tmp_path / "slides" / f"s{number}.tif", seed=number)
    encode_folder(tmp_path / "slides", tmp_path / "features", EncodeSettings(1.0, 64), encoder="seeded-conv")
    width = read_bag(tmp_path / "features" / "s0.h5").features_ND.shape[1]
    for encoder in ("seeded-conv", "uni_v1"):
        metadata = {"name": "abmil", "width": str(width), "n_classes": "2", "options": "{}", "encoder": encoder}
        model = build_model("abmil", width=width, n_classes=2, options={}, seed=0)
        path = tmp_path / f"{encoder}.safetensors"
        save_model(path, model.state_dict(), metadata | {"labels": json.dumps(["benign", "tumour"])})
    return tmp_path


def test_a_bad_slide_is_named_the_other_drawn_and_the_code_not_zero(folder: Path) -> None:
    (folder / "slides" / "s0.tif").write_bytes(b"no slide")
    where = [
        "--features",
        folder / "features",
        "--slides",
        folder / "slides",
        "--model",
        folder / "seeded-conv.safetensors",
    ]
    for kind, drawn in (("heatmap", "s1.png"), ("gallery", "s1/sheet.png")):
        run = fedpath("explain", kind, *where, "--out", folder / kind)
        assert run.code != 0
        assert "not drawn" in run.out
        assert "s0.tif" in run.out
        assert (folder / kind / drawn).is_file()
        assert not (folder / kind / drawn.replace("s1", "s0")).exists()
    (folder / "slides" / "s0.tif").unlink()
    (folder / "features" / "s0.h5").unlink()
    assert fedpath("explain", "heatmap", *where, "--out", folder / "again").code == 0


def test_features_of_another_encoder_are_refused_and_both_named(folder: Path) -> None:
    model, features = folder / "uni_v1.safetensors", folder / "features" / "s0.h5"
    run = fedpath("explain", "geojson", "--model", model, "--features", features, "--out", folder / "out")
    assert run.code != 0
    assert "'seeded-conv'" in run.err
    assert "'uni_v1'" in run.err
    assert not (folder / "out").exists()
