"""Pictures from stored features and a model: what is drawn is what the model says, patch by patch."""

import csv
import json
import re
import uuid
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from slide_files import small_slide
from typer.testing import CliRunner

from fedpath.cli.explain import app
from fedpath.client.explain.scores import explain
from fedpath.client.slides.encode import encode_folder
from fedpath.client.slides.reader import Slide
from fedpath.client.slides.settings import EncodeSettings
from fedpath.core.bags import read_bag
from fedpath.core.errors import ConfigError, DataError
from fedpath.core.models import build_model
from fedpath.core.models.checkpoint import load_model, save_model

PATCH, MPP = 64, 1.0
LABELS = ["benign", "tumour"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explain")
    (folder / "slides").mkdir()
    for number in range(2):
        small_slide(folder / "slides" / f"s{number}.tif", 0.5, seed=number)
    encode_folder(folder / "slides", folder / "features", EncodeSettings(MPP, PATCH), encoder="seeded-conv")
    width = read_bag(folder / "features" / "s0.h5").features_ND.shape[1]
    for name, options in (("acmil", {"n_branches": 3}), ("abmil", {})):
        model = build_model(name, width=width, n_classes=2, options=options, seed=0)
        metadata = {"name": name, "width": str(width), "n_classes": "2", "options": json.dumps(options)}
        metadata |= {"labels": json.dumps(LABELS), "encoder": "seeded-conv"}
        save_model(folder / f"{name}.safetensors", model.state_dict(), metadata)
    return folder


def invoke(folder: Path, kind: str, out: Path, *more: str, model: str = "acmil") -> str:
    command = [kind, "--model", str(folder / f"{model}.safetensors"), "--features", str(folder / "features")]
    result = CliRunner().invoke(app, [*command, "--out", str(out), *more])
    if result.exception is not None:
        raise result.exception
    return result.output


def literal_attention(folder: Path, model: str, slide: str) -> np.ndarray:
    """The model's own attention (K×N)."""
    built, _ = load_model(folder / f"{model}.safetensors")
    with torch.inference_mode():
        return built(read_bag(folder / "features" / f"{slide}.h5")).attention_KN.double().numpy()


def test_heatmaps_of_every_branch_and_their_scores(folder: Path, tmp_path: Path) -> None:
    output = invoke(folder, "heatmap", tmp_path, "--slides", str(folder / "slides"), "--branch", "all")
    for slide in ("s0", "s1"):
        assert re.search(rf"{slide}: (benign|tumour) \(0\.\d\d\)", output)
        attention_KN = literal_attention(folder, "acmil", slide)
        assert attention_KN.shape[0] == 3
        wanted = {slide: attention_KN.mean(axis=0)}
        wanted |= {f"{slide}.branch-{k + 1}": row_N for k, row_N in enumerate(attention_KN)}
        pictures = set()
        for stem, values_N in wanted.items():
            rows = list(csv.DictReader((tmp_path / f"{stem}.csv").open()))
            assert np.allclose([float(row["attention"]) for row in rows], values_N, rtol=1e-12)
            coords = read_bag(folder / "features" / f"{slide}.h5").coords_N2.tolist()
            assert [[int(row["x"]), int(row["y"])] for row in rows] == coords
            picture = (tmp_path / f"{stem}.png").read_bytes()
            assert cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR).shape[1] == pytest.approx(
                1200, abs=2
            )
            pictures.add(picture)
        assert len(pictures) == 4


def test_without_slides_patches_are_drawn_on_white(folder: Path, tmp_path: Path) -> None:
    invoke(folder, "heatmap", tmp_path, "--scores", "raw", model="abmil")
    picture = cv2.imread(str(tmp_path / "s0.png"))
    assert (picture == 255).all(axis=-1).mean() > 0.3
    assert (np.ptp(picture.astype(int), axis=-1) > 40).mean() > 0.1  # colours


def test_a_gallery_shows_the_extremes_as_the_encoder_saw_them(folder: Path, tmp_path: Path) -> None:
    invoke(folder, "gallery", tmp_path, "--slides", str(folder / "slides"), "--count", "5", "--branch", "2")
    values_N = literal_attention(folder, "acmil", "s0")[1]
    coords = read_bag(folder / "features" / "s0.h5").coords_N2.tolist()
    for name, order in (("top", np.argsort(-values_N)), ("bottom", np.argsort(values_N))):
        files = sorted((tmp_path / "s0.branch-2" / name).glob("*.png"))
        assert len(files) == 5
        for place, (file, n) in enumerate(zip(files, order, strict=False), start=1):
            found = re.fullmatch(r"(\d+)_score-(.+)_x-(\d+)_y-(\d+)\.png", file.name)
            assert found is not None
            assert int(found[1]) == place
            assert float(found[2]) == pytest.approx(values_N[n], rel=1e-5)
            x, y = int(found[3]), int(found[4])
            assert [x, y] == coords[n]
            with Slide(folder / "slides" / "s0.tif") as slide:
                expected = slide.read(x, y, mpp=MPP, size=PATCH)
            assert np.array_equal(cv2.imread(str(file))[..., ::-1], expected)
    assert cv2.imread(str(tmp_path / "s0.branch-2" / "sheet.png")).shape[1] > 800


def check_literally(root: object) -> list[dict[str, object]]:
    """The structure QuPath imports, word by word; return the features."""
    assert isinstance(root, dict)
    assert set(root) == {"type", "features"}
    assert root["type"] == "FeatureCollection"
    ids = set()
    for feature in root["features"]:
        assert set(feature) == {"type", "id", "geometry", "properties"}
        assert feature["type"] == "Feature"
        ids.add(uuid.UUID(feature["id"]))
        geometry = feature["geometry"]
        assert set(geometry) == {"type", "coordinates"}
        assert geometry["type"] == "Polygon"
        for ring in geometry["coordinates"]:
            assert len(ring) >= 4
            assert ring[0] == ring[-1]
            assert all(len(corner) == 2 and all(isinstance(part, int | float) for part in corner) for corner in ring)
        properties = feature["properties"]
        assert set(properties) == {"objectType", "isLocked", "classification", "measurements"}
        assert properties["objectType"] in {"annotation", "detection", "tile", "cell", "tma_core"}
        assert isinstance(properties["isLocked"], bool)
        assert set(properties["classification"]) == {"name", "color"}
        assert isinstance(properties["classification"]["name"], str)
        colour = properties["classification"]["color"]
        assert len(colour) == 3
        assert all(isinstance(part, int) and 0 <= part <= 255 for part in colour)
        assert all(isinstance(name, str) and isinstance(v, float) for name, v in properties["measurements"].items())
    assert len(ids) == len(root["features"])
    return root["features"]


def test_qupath_gets_every_patch_with_every_branch(folder: Path, tmp_path: Path) -> None:
    invoke(folder, "geojson", tmp_path, "--branch", "1")
    features = check_literally(json.loads((tmp_path / "s0.branch-1.geojson").read_text()))
    attention_KN, bag = literal_attention(folder, "acmil", "s0"), read_bag(folder / "features" / "s0.h5")
    assert len(features) == len(bag)
    by_place = {}
    for n, feature in enumerate(features):
        (ring,) = feature["geometry"]["coordinates"]  # type: ignore[index]
        x, y = bag.coords_N2[n].tolist()
        edge = bag.patch_size_level0
        assert sorted(map(tuple, ring[:4])) == sorted([(x, y), (x + edge, y), (x, y + edge), (x + edge, y + edge)])
        measured = feature["properties"]["measurements"]  # type: ignore[index]
        assert measured["attention"] == pytest.approx(attention_KN[:, n].mean())
        for k in range(3):
            assert measured[f"attention branch {k + 1}"] == pytest.approx(attention_KN[k, n])
        by_place[n] = feature["properties"]["classification"]["name"]  # type: ignore[index]
    assert by_place[int(attention_KN[0].argmax())] == "attention 80–100 %"
    assert by_place[int(attention_KN[0].argmin())] == "attention 0–20 %"


def test_a_slide_that_cannot_be_drawn_is_named_and_the_others_are_drawn(folder: Path, tmp_path: Path) -> None:
    only = tmp_path / "slides"
    only.mkdir()
    (only / "s1.tif").symlink_to(folder / "slides" / "s1.tif")
    with pytest.raises(DataError, match="slide 's0' is not there"):
        invoke(folder, "heatmap", tmp_path / "out", "--slides", str(only))
    assert not (tmp_path / "out" / "s0.png").exists()
    assert (tmp_path / "out" / "s1.png").is_file()
    # Another slide under the name of the one the features were made from.
    small_slide(only / "s0.tif", 0.25)
    for kind in ("heatmap", "gallery"):
        with pytest.raises(DataError, match="the features are of a slide of 1024×1024 px"):
            invoke(folder, kind, tmp_path / kind, "--slides", str(only))


def test_other_features_and_branches_than_the_models_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="branches 1 to 3"):
        invoke(folder, "heatmap", tmp_path, "--branch", "4")
    with pytest.raises(ConfigError, match="--branch worst"):
        invoke(folder, "heatmap", tmp_path, "--branch", "worst")
    model, metadata = load_model(folder / "acmil.safetensors")
    features = folder / "features" / "s0.h5"
    with pytest.raises(DataError, match=r"'seeded-conv'.*trained on 'uni_v1'"):
        explain(model, metadata | {"encoder": "uni_v1"}, LABELS, features)
    with pytest.raises(DataError, match="no feature files"):
        CliRunner().invoke(
            app,
            ["geojson", "--model", str(folder / "abmil.safetensors"), "--features", str(tmp_path), "--out", "o"],
            catch_exceptions=False,
        )


def test_patches_of_an_earlier_gallery_do_not_stay_beside_the_new_ones(folder: Path, tmp_path: Path) -> None:
    slides = ["--slides", str(folder / "slides")]
    invoke(folder, "gallery", tmp_path, *slides, "--count", "5")
    note = tmp_path / "s0" / "top" / "note.png"
    note.write_bytes(b"a person's own")
    invoke(folder, "gallery", tmp_path, *slides, "--count", "2", model="abmil")
    for name in ("top", "bottom"):
        assert len(list((tmp_path / "s0" / name).glob("*_score-*.png"))) == 2
    assert note.read_bytes() == b"a person's own"


def test_a_model_of_one_branch_is_drawn_once(folder: Path, tmp_path: Path) -> None:
    invoke(folder, "geojson", tmp_path, "--branch", "all", model="abmil")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s0.geojson", "s1.geojson"]
