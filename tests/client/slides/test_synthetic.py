"""Drawn hospitals: slides OpenSlide opens, truth where the nests are, splits by patient, the same for the same seed."""

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openslide
import pytest

from fedpath.client.slides.encode import encode_folder
from fedpath.client.slides.settings import EncodeSettings
from fedpath.client.slides.synthetic import make_hospital
from fedpath.client.slides.synthetic.hospital import FEWEST
from fedpath.client.slides.synthetic.stain import look_of
from fedpath.core.bags import read_bag
from fedpath.core.cohort.manifest import load_cohort
from fedpath.core.errors import DataError

SPLITS: dict[str, Any] = {"validation_share": 0.2, "test_share": 0.2, "split_seed": 0, "name": "C"}


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hospital")
    told: list[tuple[int, int]] = []
    make_hospital(folder, site="C", index=2, seed=5, slides=8, progress=lambda *at: told.append(at))
    assert told == [(n, 8) for n in range(1, 9)]
    return folder


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def truth_of(folder: Path, slide_id: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "truth" / f"{slide_id}.json").read_text())
    return loaded


def test_slides_are_pyramids_with_their_resolution(hospital: Path) -> None:
    rows = rows_of(hospital)
    assert {path.stem for path in (hospital / "slides").iterdir()} == {row["slide_id"] for row in rows}
    for row in rows:
        with openslide.OpenSlide(hospital / "slides" / f"{row['slide_id']}.tif") as slide:
            assert slide.properties["openslide.vendor"] == "generic-tiff"
            assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.325, rel=1e-6)
            assert slide.dimensions == (3151, 3151)
            assert slide.level_dimensions[1:] == ((1575, 1575), (787, 787))
            assert [round(d) for d in slide.level_downsamples] == [1, 2, 4]


def test_the_manifest_fits_the_cohort_loader(hospital: Path) -> None:
    rows = rows_of(hospital)
    assert list(rows[0]) == ["patient_id", "slide_id", "label", "split"]
    assert [row["label"] for row in rows].count("tumour") == 4
    cohort = load_cohort(hospital / "manifest.csv", labels=["normal", "tumour"], **SPLITS)
    for split in ("train", "validation", "test"):
        assert {slide.label for slide in cohort.of(split)} == {0, 1}
    assert len({row["patient_id"] for row in rows}) < len(rows)


@pytest.mark.parametrize("slides", [FEWEST, FEWEST + 1, 9])
def test_the_smallest_hospitals_have_every_label_in_every_split(tmp_path: Path, slides: int) -> None:
    make_hospital(tmp_path, site="C", index=0, seed=5, slides=slides)
    cohort = load_cohort(tmp_path / "manifest.csv", labels=["normal", "tumour"], **SPLITS)
    for split in ("train", "validation", "test"):
        assert {slide.label for slide in cohort.of(split)} == {0, 1}


def test_the_truth_lies_where_the_nests_are(hospital: Path) -> None:
    darker = []
    for row in rows_of(hospital):
        truth = truth_of(hospital, row["slide_id"])
        assert (truth["label"], truth["mpp_level0"]) == (row["label"], 0.325)
        nests = [np.array(nest) for nest in truth["tumour"]]
        assert bool(nests) == (row["label"] == "tumour")
        with openslide.OpenSlide(hospital / "slides" / f"{row['slide_id']}.tif") as slide:
            image = np.asarray(slide.read_region((0, 0), 2, slide.level_dimensions[2]))[..., :3].astype(float)
        tissue = image[..., 1] < 215
        for nest in nests:
            assert (nest >= 0).all()
            assert (nest < 3151).all()
            inside = np.zeros(tissue.shape, np.uint8)
            cv2.fillPoly(inside, [np.rint(nest / 4).astype(int)], 1)
            assert tissue[inside > 0].mean() > 0.7
            darker.append(image[(inside > 0) & tissue].mean() < image[(inside == 0) & tissue].mean())
    assert np.mean(darker) > 0.9


def test_the_same_seed_draws_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_hospital(tmp_path / name, site="B", index=1, seed=seed, slides=6)

    def content(name: str) -> dict[str, bytes]:
        files = (path for path in sorted((tmp_path / name).rglob("*")) if path.is_file())
        return {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in files}

    assert content("a") == content("b")
    assert content("a")["slides/B-001.tif"] != content("c")["slides/B-001.tif"]


def test_hospitals_look_different_and_there_are_any_number() -> None:
    looks = [look_of(index) for index in range(12)]
    assert [look.mpp for look in looks[:3]] == [0.25, 0.5, 0.325]
    assert len({(look.haematoxylin, look.eosin) for look in looks}) == 12
    assert looks[7] == look_of(7)
    assert all(0.2 <= look.mpp <= 0.5 for look in looks)


def test_too_few_slides_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="5 slides are too few"):
        make_hospital(tmp_path, site="A", index=0, seed=0, slides=5)


def test_nests_can_be_told_from_the_rest_by_their_features(hospital: Path, tmp_path: Path) -> None:
    """What the demo rests on; and features are of the scale the encoder was standardised to."""
    encode_folder(hospital / "slides", tmp_path, EncodeSettings(0.5, 128), encoder="seeded-conv")
    features, shares = [], []
    for row in rows_of(hospital):
        bag = read_bag(tmp_path / f"{row['slide_id']}.h5")
        truth = truth_of(hospital, row["slide_id"])
        mask = np.zeros((3151, 3151), np.uint8)
        cv2.fillPoly(mask, [np.rint(np.array(nest)).astype(int) for nest in truth["tumour"]], 1)
        edge = bag.patch_size_level0
        shares += [mask[y : y + edge, x : x + edge].mean() for x, y in bag.coords_N2.tolist()]
        features.append(bag.features_ND.float().numpy())
    features_ND, shares_N = np.concatenate(features), np.array(shares)
    assert abs(np.median(features_ND)) < 1
    assert 0.3 < features_ND.std() < 2
    nest_D, rest_D = features_ND[shares_N > 0.6].mean(axis=0), features_ND[shares_N == 0]
    distance = np.abs(nest_D - rest_D.mean(axis=0)) / rest_D.std(axis=0)
    assert distance.max() > 1.5
