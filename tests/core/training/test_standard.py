"""How clinical data is read without a federation: by training patients only, each hospital under its own minimum."""

import numpy as np
import pytest
import torch

from fedpath.core.bags import Bag
from fedpath.core.clinical.record import ClinicalRecord
from fedpath.core.clinical.standard import Standard
from fedpath.core.cohort import Example
from fedpath.core.config import FederationConfig
from fedpath.core.config.clinical import ClinicalSchema
from fedpath.core.models import BagModel
from fedpath.core.models.multimodal.bd import Bd
from fedpath.core.training import examine, train_alone
from fedpath.core.training.alone import initial_model
from fedpath.core.training.standard import standard_of

CLINICAL = {
    "fields": {
        "age": {"type": "number", "unit": "years", "minimum": 0.0, "maximum": 120.0, "outcome_derived": False},
        "grade": {"type": "category", "vocabulary": ["G1", "G2", "G3"], "outcome_derived": False},
    }
}
SCHEMA = ClinicalSchema.model_validate(CLINICAL)
CONFIG = FederationConfig.model_validate(
    {
        "federation": {"name": "test", "sites": ["A"], "seed": 3},
        "server": {"address": "localhost:1"},
        "task": {"labels": ["normal", "tumour"]},
        "features": {"encoder": "table", "width": 6},
        "clinical": CLINICAL,
        "model": {
            "name": "bd",
            "options": {"encoder_options": {"inner": 6, "attention": 6}, "hidden": 6, "prompt": 6},
        },
        "training": {"rounds": 2, "local_epochs": 1, "learning_rate": 1e-3},
    }
)


def record_of(age: float | None, grade: int | None) -> ClinicalRecord:
    return ClinicalRecord(
        torch.tensor([age or 0.0, grade or 0.0], dtype=torch.float64),
        torch.tensor([age is not None, grade is not None]),
    )


def example_of(patient: str, record: ClinicalRecord | None, slide: str = "") -> Example:
    slide = slide or patient
    generator = torch.Generator().manual_seed(sum(slide.encode()))
    bag = Bag(slide, torch.randn(5, 6, generator=generator), torch.zeros(5, 2, dtype=torch.int64), 256, clinical=record)
    return Example(bag, sum(slide.encode()) % 2, patient, slide)


AGES = [41.5, 63.0, 58.25, 70.0, 49.0, 66.5]
HERE = [example_of(f"a{index}", record_of(age, index % 3)) for index, age in enumerate(AGES)]
THERE = [example_of(f"b{index}", record_of(age + 12, None)) for index, age in enumerate(AGES[:4])]
NOBODY = [example_of(f"c{index}", None) for index in range(5)]


def test_is_mean_and_spread_of_the_patients_and_not_of_the_slides() -> None:
    second = example_of("a0", HERE[0].bag.clinical, slide="again")
    standard = standard_of(SCHEMA, [([*HERE, second, *NOBODY], 1)])
    assert standard.patients == 6
    assert standard.mean == {"age": pytest.approx(np.mean(AGES))}
    assert standard.sd == {"age": pytest.approx(np.std(AGES))}
    assert standard.shares == {"grade": pytest.approx((1 / 3, 1 / 3, 1 / 3))}


def test_hospitals_are_put_together_as_one_would_be() -> None:
    together = standard_of(SCHEMA, [(HERE, 1), (THERE, 1), (NOBODY, 1)])
    alone = standard_of(SCHEMA, [([*HERE, *THERE, *NOBODY], 1)])
    assert together.patients == alone.patients == 10
    assert together.mean == pytest.approx(alone.mean)
    assert together.sd == pytest.approx(alone.sd)
    assert together.shares == alone.shares


def test_a_hospital_below_its_own_minimum_says_nothing() -> None:
    assert standard_of(SCHEMA, [(HERE, 3), (THERE, 5)]) == standard_of(SCHEMA, [(HERE, 3)])
    # Of three words two patients each: the field is reported, its words are not.
    assert standard_of(SCHEMA, [(HERE, 3)]).shares == {}
    assert standard_of(SCHEMA, [(HERE, 7), (NOBODY, 1)]) == Standard(0)


def state_of(model: BagModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_training_alone_sets_what_its_training_patients_say() -> None:
    result = train_alone(CONFIG, [*HERE, *NOBODY], THERE, seed=1)
    expected = initial_model(CONFIG)
    assert isinstance(expected, Bd)
    expected.use_standard(standard_of(SCHEMA, [([*HERE, *NOBODY], 1)]))
    agreed = [name for name in expected.state_dict() if name.startswith("coder.")]
    assert "coder.mean_F" in agreed
    for state in (result.best_state, result.last_state):
        for name in agreed:
            assert torch.equal(state[name], expected.state_dict()[name])


def test_validation_patients_do_not_touch_the_standard_or_the_weights() -> None:
    other = [example_of(one.patient_id, record_of(119.0, 2)) for one in THERE]
    one, two = (train_alone(CONFIG, HERE, validation, seed=1).last_state for validation in (THERE, other))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_callers_standard_is_the_one_that_is_used() -> None:
    standard = standard_of(SCHEMA, [(HERE, 1), (THERE, 1)])
    state = train_alone(CONFIG, HERE, [], seed=1, standard=standard).last_state
    assert state["coder.mean_F"][0] == torch.tensor(standard.mean["age"], dtype=torch.float32)


def test_where_nobody_has_clinical_data_all_go_by_the_single_modal_branch() -> None:
    state = train_alone(CONFIG, NOBODY, [], seed=1).last_state
    model = initial_model(CONFIG)
    for name, tensor in state.items():
        if name.startswith(("clinical.", "fusion.", "multi_head.")):
            assert torch.equal(tensor, model.state_dict()[name])
    model.load_state_dict(state)
    assert examine(model, [*HERE, *NOBODY]).routes == ("single-modal",) * 11


def test_each_patient_goes_by_the_branch_that_fits() -> None:
    model = initial_model(CONFIG)
    model.load_state_dict(train_alone(CONFIG, [*HERE, *NOBODY], [], seed=1).last_state)
    assert examine(model, [*NOBODY, *HERE]).routes == ("single-modal",) * 5 + ("multi-modal",) * 6
