"""Bags in memory: the cohort's order, and features that are missing, broken or of another encoder."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from fedpath.core.bags import FeatureMeta, write_features
from fedpath.core.clinical.record import ClinicalRecord
from fedpath.core.cohort import Cohort, load_cohort, load_examples
from fedpath.core.config import FederationConfig, SiteConfig
from fedpath.core.errors import DataError
from fedpath.core.training.data import load_site_examples

WIDTH = 6


def write_bag(path: Path, n_instances: int, width: int = WIDTH) -> None:
    meta = FeatureMeta(
        slide_id=path.stem,
        encoder="table",
        encoder_sha256="0" * 64,
        mpp_level0=None,
        mpp=None,
        patch_px=None,
        patch_size_level0=1,
        level0_width=None,
        level0_height=None,
        transform="none",
        reader="test",
        slide_sha256="0" * 64,
        failed_tiles=0,
    )
    coords_N2 = np.stack([np.arange(n_instances), np.zeros(n_instances, dtype=np.int64)], axis=1)
    write_features(path, np.full((n_instances, width), float(n_instances)), coords_N2, meta)


FEDERATION = {
    "federation": {"name": "test", "sites": ["A"]},
    "server": {"address": "localhost:1"},
    "task": {"labels": ["normal", "tumour"]},
    "features": {"encoder": "table", "width": WIDTH},
}
CLINICAL = {
    "fields": {
        "er": {"type": "binary", "positive": "yes", "negative": "no", "outcome_derived": False},
        "age": {"type": "number", "unit": "years", "minimum": 0.0, "maximum": 120.0, "outcome_derived": False},
    }
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = ["p1,b,tumour,train", "p2,a,normal,train", "p3,c,normal,validation", "p4,d,tumour,test"]
    (tmp_path / "manifest.csv").write_text("patient_id,slide_id,label,split\n" + "\n".join(rows))
    for n_instances, name in enumerate("abcd", start=1):
        write_bag(tmp_path / "features" / f"{name}.h5", n_instances)
    return tmp_path


def cohort_of(folder: Path) -> Cohort:
    return load_cohort(folder / "manifest.csv", labels=["normal", "tumour"], name="A")


def site_of(folder: Path, **clinical: object) -> SiteConfig:
    data = {"manifest": folder / "manifest.csv", "features": folder / "features"}
    return SiteConfig.model_validate(
        {"site": {"name": "A"}, "data": data} | ({"clinical": clinical} if clinical else {})
    )


def test_loads_the_bags_of_a_split_in_the_cohorts_order(folder: Path) -> None:
    one, two = load_examples(cohort_of(folder), folder / "features", "train", width=WIDTH)
    assert (one.slide_id, one.patient_id, one.target, one.bag.features_ND.shape) == ("a", "p2", 0, (1, WIDTH))
    assert (two.slide_id, two.patient_id, two.target, two.bag.features_ND.shape) == ("b", "p1", 1, (2, WIDTH))
    assert (two.bag.features_ND == 2).all()


def test_loads_what_site_toml_describes(folder: Path) -> None:
    loaded = load_site_examples(site_of(folder), FederationConfig.model_validate(FEDERATION))
    assert {split: [example.slide_id for example in examples] for split, examples in loaded.items()} == {
        "train": ["a", "b"],
        "validation": ["c"],
        "test": ["d"],
    }


def test_all_slides_of_a_patient_share_the_record(folder: Path) -> None:
    (folder / "manifest.csv").write_text(
        "patient_id,slide_id,label,split\np1,a,tumour,train\np1,b,tumour,train\np2,c,normal,train\np3,d,normal,test"
    )
    record = ClinicalRecord(torch.tensor([61.0], dtype=torch.float64), torch.tensor([True]))
    one, two, other = load_examples(
        cohort_of(folder), folder / "features", "train", width=WIDTH, records={"p1": record, "p9": record}
    )
    assert one.bag.clinical is record
    assert two.bag.clinical is record
    assert other.bag.clinical is None


def test_clinical_data_is_read_for_a_model_that_uses_it(folder: Path) -> None:
    (folder / "clinical.csv").write_text("patient_id,Age,ER\np1,61,yes\np2,,no\np4,70,\np9,50,no\n")
    site = site_of(folder, table=folder / "clinical.csv", columns={"age": "Age", "er": "ER"})
    model = {"clinical": CLINICAL, "model": {"name": "bd"}}
    loaded = load_site_examples(site, FederationConfig.model_validate(FEDERATION | model))
    records = {example.patient_id: example.bag.clinical for part in loaded.values() for example in part}
    assert {
        patient: record and (record.values_F.tolist(), record.present_F.tolist()) for patient, record in records.items()
    } == {
        "p1": ([1.0, 61.0], [True, True]),
        "p2": ([0.0, 0.0], [True, False]),
        "p3": None,
        "p4": ([0.0, 70.0], [False, True]),
    }
    # A hospital without a table has no records.
    without = load_site_examples(site_of(folder), FederationConfig.model_validate(FEDERATION | model))
    assert all(example.bag.clinical is None for part in without.values() for example in part)


@pytest.mark.parametrize("change", [{"clinical": CLINICAL}, {}])
def test_no_table_is_read_for_a_model_that_does_not_use_it(folder: Path, change: dict[str, object]) -> None:
    site = site_of(folder, table=folder / "there is none.csv", columns={"age": "Age"})
    loaded = load_site_examples(site, FederationConfig.model_validate(FEDERATION | change))
    assert all(example.bag.clinical is None for part in loaded.values() for example in part)


def test_missing_features_are_named_and_counted(folder: Path) -> None:
    for name in "ab":
        (folder / "features" / f"{name}.h5").unlink()
    with pytest.raises(DataError, match=r"a\.h5: no feature file for slide 'a' of A \(and 1 more of 2\)"):
        load_examples(cohort_of(folder), folder / "features", "train", width=WIDTH)


def test_features_of_another_width_are_refused(folder: Path) -> None:
    write_bag(folder / "features" / "a.h5", 3, width=7)
    with pytest.raises(DataError, match=r"a\.h5: features are 7 wide, the federation's are 6"):
        load_examples(cohort_of(folder), folder / "features", "train", width=WIDTH)


def test_a_truncated_file_is_refused(folder: Path) -> None:
    path = folder / "features" / "a.h5"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"a\.h5"):
        load_examples(cohort_of(folder), folder / "features", "train", width=WIDTH)


def test_a_bag_without_patches_is_refused(folder: Path) -> None:
    with h5py.File(folder / "features" / "a.h5", "w") as file:
        file["features"] = np.empty((0, WIDTH), dtype=np.float16)
        file["coords"] = np.empty((0, 2), dtype=np.int64)
    with pytest.raises(DataError, match=r"a\.h5"):
        load_examples(cohort_of(folder), folder / "features", "train", width=WIDTH)
