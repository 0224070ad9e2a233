"""One hospital's clinical data in a run: what it tells, what it trains, what it holds back."""

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federation import write_bag

from fedpath.client.agent.worker import Worker
from fedpath.core.clinical.standard import Standard, statistics_of
from fedpath.core.cohort import load_examples, load_site_cohort
from fedpath.core.cohort.clinical.join import load_clinical
from fedpath.core.config import SiteConfig, load_site
from fedpath.core.config.clinical import BinaryField, ClinicalSchema, NumberField
from fedpath.core.config.federation import FeaturesSection
from fedpath.core.config.model import ModelSection
from fedpath.core.errors import DataError, RefusedError
from fedpath.core.events import Event, EventLog
from fedpath.core.exchange.groups import group_of, load_arrays, to_arrays
from fedpath.core.exchange.messages import Describe, Description, Evaluate, Finish, RunFacts, Train, Update
from fedpath.core.exchange.wire import Arrays, hash_arrays
from fedpath.core.models import build_model, load_model
from fedpath.core.models.multimodal.parts import MultimodalModel
from fedpath.core.training import TrainSettings, train

WIDTH, LABELS = 8, ["normal", "tumour"]
OPTIONS = {"hidden": 4, "prompt": 3, "encoder_options": {"inner": 3, "attention": 2}}
SCHEMA = ClinicalSchema(
    fields={
        "age": NumberField(type="number", unit="years", minimum=18, maximum=110, outcome_derived=False),
        "er": BinaryField(type="binary", positive="yes", negative="no", outcome_derived=False),
    }
)
FACTS = RunFacts(
    federation="lung",
    run="r1",
    seed=7,
    labels=LABELS,
    features=FeaturesSection(encoder="noise", width=WIDTH, mpp=0.5, patch_px=128),
    model=ModelSection(name="bd", options=OPTIONS),
    clinical=SCHEMA,
)
STANDARD = Standard(20, {"age": 55.0}, {"age": 12.0}, {"er": (0.5, 0.5)})
EVERYBODY, CLINICAL_GROUPS = ["image", "prompt", "single_head"], ["clinical", "fusion", "multi_head"]
# Of six training patients four have an age, three of these a status; p4 has a row and nothing in it, p9 is nobody's.
TABLE = "patient_id,age,er\np0,40,yes\np1,50,no\np2,60,no\np3,70,\np4,,\np6,45,yes\np9,80,yes\n"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight patients, one slide each and two of the first: six to train on, one to validate and one to test on."""
    folder = tmp_path_factory.mktemp("cohort")
    rows = [["patient_id", "slide_id", "label", "split"]]
    random = np.random.default_rng(0)
    for number in range(9):
        patient = number % 8
        split = "train" if patient < 6 else "validation" if patient == 6 else "test"
        rows.append([f"p{patient}", f"s{number}", LABELS[patient % 2], split])
        write_bag(folder / "features" / f"s{number}.h5", f"s{number}", random.normal(size=(5, WIDTH)), "noise")
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


class Hospital:
    """The cohort with a table of its own."""

    def __init__(self, cohort: Path, folder: Path, table: str | None = TABLE, min_patients: int = 1) -> None:
        clinical = "" if table is None else '[clinical]\ntable = "table.csv"\ncolumns = { age = "age", er = "er" }\n'
        (folder / "table.csv").write_text(table or "")
        (folder / "site.toml").write_text(
            f'[site]\nname = "A"\n[data]\nmanifest = "{cohort}/manifest.csv"\nfeatures = "{cohort}/features"\n'
            f"{clinical}[policy]\nmin_patients = {min_patients}\n"
        )
        self.folder = folder
        self.heard: list[Event] = []
        self.config: SiteConfig = load_site(folder / "site.toml")
        self.worker = Worker(self.config, federation="lung", events=EventLog(None, self.heard.append))

    def describe(self, **facts: Any) -> Description:
        answer, _ = self.worker.carry_out(Describe(facts=FACTS.model_copy(update=facts)), {})
        assert isinstance(answer, Description)
        return answer

    def train(self, model: Arrays, **changes: Any) -> tuple[Update, Arrays]:
        answer, arrays = self.worker.carry_out(train_order(model, **changes), model)
        assert isinstance(answer, Update)
        return answer, arrays

    def said(self, kind: str) -> list[dict[str, Any]]:
        return [event.values for event in self.heard if event.kind == kind]


def make_model(standard: Standard | None = STANDARD, **options: Any) -> MultimodalModel:
    model = build_model("bd", width=WIDTH, n_classes=2, options=OPTIONS | options, seed=3, clinical=SCHEMA)
    assert isinstance(model, MultimodalModel)
    if standard is not None:
        model.use_standard(standard)
    return model


def train_order(model: Arrays, **changes: Any) -> Train:
    values: dict[str, Any] = {
        "facts": FACTS, "round": 1, "rounds": 2, "base": hash_arrays(model), "local_epochs": 1,
        "learning_rate": 1e-2, "weight_decay": 1e-3, "class_weights": True,
    }  # fmt: skip
    return Train(**values | changes)


def groups_in(arrays: Mapping[str, object]) -> list[str]:
    return sorted({group_of(name) for name in arrays})


def test_it_describes_sums_over_the_training_patients(cohort: Path, tmp_path: Path) -> None:
    hospital = Hospital(cohort, tmp_path)
    clinical = hospital.describe().clinical
    assert clinical is not None
    assert clinical.model_dump() == {
        "patients": 4,
        "fields": {
            "age": {"count": 4, "sum": 220.0, "sum_squares": 12600.0, "words": None},
            "er": {"count": 3, "sum": None, "sum_squares": None, "words": [2, 1]},
        },
    }
    assert hospital.said("clinical_described") == [
        {"patients": 4, "of": 6, "told": True, "fields": {"age": 4, "er": 3}, "held_back": [], "min_patients": 1}
    ]
    assert not any(word in repr(hospital.heard) for word in ("p0", "table.csv", "s0"))


def test_without_a_table_or_a_question_it_describes_nothing(cohort: Path, tmp_path: Path) -> None:
    assert Hospital(cohort, tmp_path, table=None).describe().clinical is None
    assert Hospital(cohort, tmp_path).describe(clinical=None).clinical is None


@pytest.mark.parametrize(
    ("min_patients", "fields", "words"), [(2, ["age", "er"], None), (4, ["age"], None), (5, None, None)]
)
def test_what_few_patients_have_is_held_back(
    cohort: Path, tmp_path: Path, min_patients: int, fields: list[str] | None, words: None
) -> None:
    """Three have a status, one of them yes; four have any clinical data."""
    hospital = Hospital(cohort, tmp_path, min_patients=min_patients)
    clinical = hospital.describe().clinical
    assert (clinical and list(clinical.fields)) == fields
    if clinical is not None and "er" in clinical.fields:
        assert clinical.fields["er"].words is words
    (said,) = hospital.said("clinical_described")
    assert (said["patients"], said["told"]) == (4, fields is not None)
    assert said["held_back"] == sorted({"age", "er"} - set(fields or []))


def test_a_contradicting_table_is_an_error_that_stays_here(cohort: Path, tmp_path: Path) -> None:
    hospital = Hospital(cohort, tmp_path, table=TABLE + "p1,51,no\n")
    for order in (Describe(facts=FACTS), train_order(to_arrays(make_model()))):
        with pytest.raises(DataError, match=r"table\.csv, line 9: patient 'p1': contradiction"):
            hospital.worker.carry_out(order, to_arrays(make_model()))


def test_it_sends_the_groups_that_were_trained_with_their_own_counts(cohort: Path, tmp_path: Path) -> None:
    model = to_arrays(make_model())
    hospital = Hospital(cohort, tmp_path)
    update, trained = hospital.train(model)
    assert update.patients == dict.fromkeys(EVERYBODY, 6) | dict.fromkeys(CLINICAL_GROUPS, 4)
    assert groups_in(trained) == sorted(EVERYBODY + CLINICAL_GROUPS)  # not "standard"
    assert hospital.said("trained")[0]["patients"] == update.patients

    expected = make_model(standard=None)
    load_arrays(expected, model)
    manifest = load_site_cohort(hospital.config, LABELS)
    records = load_clinical(hospital.config, SCHEMA, manifest).records
    examples = load_examples(manifest, cohort / "features", "train", width=WIDTH, records=records)
    train(expected, examples, TrainSettings(1, 1e-2, 1e-3, True), seed=_seed("7/A/1"), span=(0, 1 / 2))
    everything = to_arrays(expected)
    assert hash_arrays(trained) == hash_arrays({name: everything[name] for name in trained})


def _seed(text: str) -> int:
    import hashlib

    return int(hashlib.sha256(text.encode()).hexdigest()[:14], 16)


def test_without_a_table_no_clinical_group_is_sent(cohort: Path, tmp_path: Path) -> None:
    update, trained = Hospital(cohort, tmp_path, table=None).train(to_arrays(make_model()))
    assert update.patients == dict.fromkeys(EVERYBODY, 6)
    assert groups_in(trained) == EVERYBODY


def test_where_nobody_agreed_on_anything_the_records_are_not_read(cohort: Path, tmp_path: Path) -> None:
    model = to_arrays(make_model(standard=None))
    update, trained = Hospital(cohort, tmp_path).train(model)
    assert update.patients == dict.fromkeys(EVERYBODY, 6)
    (other := tmp_path / "other").mkdir()
    assert hash_arrays(trained) == hash_arrays(Hospital(cohort, other, table=None).train(model)[1])


def test_fewer_records_than_the_policy_asks_for_are_not_trained_on(cohort: Path, tmp_path: Path) -> None:
    """Their number would leave as the count of the clinical groups."""
    model = to_arrays(make_model())
    hospital = Hospital(cohort, tmp_path, min_patients=5)
    update, trained = hospital.train(model)
    assert update.patients == dict.fromkeys(EVERYBODY, 6)
    assert hospital.said("clinical_not_trained") == [{"round": 1, "patients": 4, "min_patients": 5}]
    (other := tmp_path / "other").mkdir()
    without = Hospital(cohort, other, table=None, min_patients=5)
    assert hash_arrays(trained) == hash_arrays(without.train(model)[1])
    assert without.said("clinical_not_trained") == []
    (third := tmp_path / "third").mkdir()
    assert Hospital(cohort, third, min_patients=4).train(model)[0].patients["clinical"] == 4


def test_records_without_an_agreed_field_do_not_count(cohort: Path, tmp_path: Path) -> None:
    """Where no hospital told of an age, a patient of whom nothing else is known is read as one without a table."""
    model = to_arrays(make_model(replace(STANDARD, mean={}, sd={})))
    hospital = Hospital(cohort, tmp_path, min_patients=3)
    assert hospital.train(model)[0].patients["clinical"] == 3  # p3 has an age and no status
    (other := tmp_path / "other").mkdir()
    strict = Hospital(cohort, other, min_patients=4)
    assert "clinical" not in strict.train(model)[0].patients
    assert strict.said("clinical_not_trained") == [{"round": 1, "patients": 3, "min_patients": 4}]


def test_a_group_whose_loss_is_switched_off_is_not_sent(cohort: Path, tmp_path: Path) -> None:
    off = {"multi_loss": 0.0, "to_single": 0.0}
    model = to_arrays(make_model(**off))
    facts = FACTS.model_copy(update={"model": ModelSection(name="bd", options=OPTIONS | off)})
    update, trained = Hospital(cohort, tmp_path).train(model, facts=facts)
    assert "multi_head" not in update.patients
    assert groups_in(trained) == sorted(update.patients)
    assert update.patients["fusion"] == 4  # learns from the other branch's features


def test_training_that_changes_nothing_is_said_and_not_sent(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="site A refuses: training changed nothing that it may send"):
        Hospital(cohort, tmp_path).train(to_arrays(make_model()), learning_rate=1e-40, weight_decay=0.0)


def test_events_say_which_patients_went_which_way_in_numbers(cohort: Path, tmp_path: Path) -> None:
    model = to_arrays(make_model())
    hospital = Hospital(cohort, tmp_path)
    hospital.train(model)
    assert hospital.said("validated")[0]["routes"] == {"multi-modal": 1}  # p6
    answer, _ = hospital.worker.carry_out(Evaluate(facts=FACTS, round=1, base=hash_arrays(model), split="test"), model)
    assert hospital.said("evaluated")[0]["routes"] == {"single-modal": 1}  # p7
    assert "route" not in answer.model_dump_json()


def test_the_fields_stay_those_of_the_first_order(cohort: Path, tmp_path: Path) -> None:
    hospital = Hospital(cohort, tmp_path)
    hospital.describe()
    age, er = SCHEMA.fields["age"], SCHEMA.fields["er"]
    narrower = age.model_copy(update={"maximum": 69.0})
    for fields in ({"age": narrower, "er": er}, {"age": age}, {"er": er, "age": age}):
        facts = FACTS.model_copy(update={"clinical": ClinicalSchema(fields=fields), "run": "r2"})
        with pytest.raises(RefusedError, match="site A refuses: the clinical fields have changed since it joined"):
            hospital.worker.carry_out(Describe(facts=facts), {})
    assert hospital.describe().clinical is not None


def test_the_final_model_says_which_fields_it_reads(cohort: Path, tmp_path: Path) -> None:
    model = to_arrays(make_model())
    hospital = Hospital(cohort, tmp_path)
    hospital.worker.carry_out(Finish(facts=FACTS, base=hash_arrays(model), best_round=1), model)
    kept, _ = load_model(tmp_path / "state" / "r1" / "federated.safetensors")
    assert isinstance(kept, MultimodalModel)
    assert hash_arrays(to_arrays(kept)) == hash_arrays(model)  # what was agreed on is in it
    manifest = load_site_cohort(hospital.config, LABELS)
    records = load_clinical(hospital.config, SCHEMA, manifest).records
    (example,) = load_examples(manifest, cohort / "features", "validation", width=WIDTH, records=records)
    with torch.inference_mode():
        assert kept(example.bag).route == "multi-modal"
    statistics = statistics_of(SCHEMA, records.values(), min_patients=1)
    assert statistics is not None
    assert statistics.patients == 5  # the training patients and p6
