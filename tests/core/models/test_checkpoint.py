"""Checkpoints: what is saved comes back, broken files are named, the same model has the same bytes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedpath.core.bags import Bag
from fedpath.core.clinical.record import ClinicalRecord
from fedpath.core.clinical.standard import Standard
from fedpath.core.config.clinical import ClinicalSchema
from fedpath.core.config.federation import FeaturesSection
from fedpath.core.config.model import ModelSection
from fedpath.core.errors import DataError
from fedpath.core.models import build_model, load_model, save_model
from fedpath.core.models.checkpoint import model_metadata
from fedpath.core.models.multimodal.bd import Bd

OPTIONS = {"inner": 8, "input_norm": "layer"}
METADATA = {
    "name": "acmil",
    "width": "16",
    "n_classes": "2",
    "options": json.dumps(OPTIONS),
    "labels": json.dumps(["normal", "tumour"]),
    "federation": "träger",
}
SCHEMA = ClinicalSchema.model_validate(
    {
        "fields": {
            "grade": {"type": "category", "vocabulary": ["G1", "G2", "G3"], "outcome_derived": False},
            "age": {"type": "number", "unit": "years", "minimum": 0.0, "maximum": 120.0, "outcome_derived": False},
        }
    }
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "best.safetensors"
    save_model(path, build_model("acmil", width=16, n_classes=2, options=OPTIONS, seed=5).state_dict(), METADATA)
    return path


def test_a_saved_model_comes_back_with_its_metadata(saved: Path) -> None:
    bag = Bag("slide", torch.randn(9, 16), torch.zeros(9, 2, dtype=torch.int64), 256)
    expected = build_model("acmil", width=16, n_classes=2, options=OPTIONS, seed=5).eval()
    model, metadata = load_model(saved)
    assert metadata == METADATA
    assert not model.training
    assert torch.equal(model(bag).logits_C, expected(bag).logits_C)


def test_the_same_model_is_the_same_bytes_and_plain_safetensors(saved: Path, tmp_path: Path) -> None:
    state = load_file(saved)
    for again in range(8):  # safetensors' own header order is random
        path = tmp_path / f"{again}.safetensors"
        save_model(path, dict(reversed(state.items())), dict(reversed(METADATA.items())))
        assert path.read_bytes() == saved.read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_named(saved: Path, share: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=r"best\.safetensors.*not a whole safetensors file"):
        load_model(saved)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.safetensors: no such model file"):
        load_model(tmp_path / "gone.safetensors")


def test_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a whole safetensors file"):
        load_model(tmp_path)


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match=r"other\.safetensors: metadata lacks name, width"):
        load_model(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    "change", [{"width": "17"}, {"width": "wide"}, {"options": "{"}, {"options": '{"depth": 2}'}, {"name": "acmil2"}]
)
def test_tensors_that_do_not_fit_their_metadata_are_refused(saved: Path, change: dict[str, str]) -> None:
    state = load_file(saved)
    save_model(saved, state, METADATA | change)
    with pytest.raises(DataError, match="does not fit model"):
        load_model(saved)


def test_incomplete_metadata_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lacks width"):
        save_model(tmp_path / "x.safetensors", {}, {key: METADATA[key] for key in METADATA if key != "width"})
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def clinical(tmp_path: Path) -> tuple[Path, Bd]:
    """A model that reads clinical data, and its file."""
    section = ModelSection(name="bd", options={"hidden": 8, "prompt": 8, "encoder_options": {"inner": 8}})
    model = build_model("bd", width=16, n_classes=2, options=section.options, seed=5, clinical=SCHEMA)
    assert isinstance(model, Bd)
    model.use_standard(Standard(9, {"age": 61.3}, {"age": 8.7}, {"grade": (0.5, 0.25, 0.25)}))
    features = FeaturesSection(encoder="table", width=16)
    metadata = model_metadata("lung", section, features, ["normal", "tumour"], SCHEMA)
    save_model(tmp_path / "bd.safetensors", model.state_dict(), metadata)
    return tmp_path / "bd.safetensors", model.eval()


@pytest.mark.parametrize("age", [None, 40.0])
def test_a_model_of_clinical_data_predicts_from_its_file_alone(clinical: tuple[Path, Bd], age: float | None) -> None:
    path, model = clinical
    record = age and ClinicalRecord(torch.tensor([2.0, age], dtype=torch.float64), torch.tensor([True, True]))
    bag = Bag("slide", torch.randn(9, 16), torch.zeros(9, 2, dtype=torch.int64), 256, clinical=record or None)
    loaded, metadata = load_model(path)
    assert list(json.loads(metadata["clinical"])["fields"]) == ["grade", "age"]  # the order is the model's
    assert loaded(bag).route == model(bag).route == ("multi-modal" if age else "single-modal")
    assert torch.equal(loaded(bag).logits_C, model(bag).logits_C)


def test_a_model_of_clinical_data_without_its_fields_is_refused(clinical: tuple[Path, Bd]) -> None:
    path, model = clinical
    metadata = load_model(path)[1]
    for change in (None, "{", '{"fields": {}}', SCHEMA.model_dump_json().replace("G3", "G2")):
        other = {key: value for key, value in metadata.items() if key != "clinical"}
        save_model(path, model.state_dict(), other | ({} if change is None else {"clinical": change}))
        with pytest.raises(DataError, match=r"bd\.safetensors: does not fit model 'bd'"):
            load_model(path)


def test_a_model_that_reads_no_clinical_data_does_not_name_the_fields() -> None:
    features = FeaturesSection(encoder="table", width=16)
    assert "clinical" not in model_metadata("lung", ModelSection(name="acmil"), features, ["a", "b"], SCHEMA)
