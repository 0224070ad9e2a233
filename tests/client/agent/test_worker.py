"""One hospital's work, on a tiny cohort: what it does, what it holds back, what it refuses."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedpath.client.agent.folders import FINAL_MODEL
from fedpath.client.agent.worker import Worker
from fedpath.core.bags.store import FeatureMeta, write_features
from fedpath.core.cohort import load_cohort, load_examples
from fedpath.core.config import SiteConfig
from fedpath.core.config.federated import Encoding, ExchangeSection
from fedpath.core.config.federation import FeaturesSection
from fedpath.core.config.model import ModelSection
from fedpath.core.config.site import ComputeSection, DataSection, PolicySection, SiteSection
from fedpath.core.errors import DataError, FedpathError, RefusedError
from fedpath.core.events import Event, EventLog
from fedpath.core.exchange.groups import load_arrays, to_arrays
from fedpath.core.exchange.messages import (
    Describe,
    Description,
    Evaluate,
    Evaluation,
    Finish,
    Metrics,
    Receipt,
    Refuse,
    RunFacts,
    Train,
    Update,
    decode_answer,
    encode,
)
from fedpath.core.exchange.wire import Arrays, hash_arrays
from fedpath.core.models import BagModel, build_model, load_model
from fedpath.core.training import TrainSettings, evaluate, train
from fedpath.core.training.engines.launch import TrainingProcessError
from fedpath.core.training.loop import TrainResult

WIDTH, LABELS = 4, ["normal", "tumour"]
OPTIONS = {"inner": 3, "attention": 2, "n_branches": 2}
FACTS = RunFacts(
    federation="lung",
    run="r1",
    seed=7,
    labels=LABELS,
    features=FeaturesSection(encoder="e", width=WIDTH, mpp=0.5, patch_px=128),
    model=ModelSection(name="acmil", options=OPTIONS),
)


def write_bag(path: Path, *, label: int = 0, width: int = WIDTH, seed: int = 0, **changes: Any) -> None:
    features = np.random.default_rng(seed).normal(size=(6, width))
    features[:2, 0] += 3.0 * label
    coords = np.stack([np.arange(6) * 256, np.zeros(6, dtype=int)], axis=1)
    meta: dict[str, Any] = {
        "slide_id": path.stem, "encoder": "e", "encoder_sha256": "0" * 64, "mpp_level0": 0.25, "mpp": 0.5,
        "patch_px": 128, "patch_size_level0": 256, "level0_width": 4096, "level0_height": 4096, "transform": "t",
        "reader": "test", "slide_sha256": "0" * 64, "failed_tiles": 0,
    }  # fmt: skip
    write_features(path, features, coords, FeatureMeta(**meta | changes))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten patients: six to train on (one of them with two slides), two to validate and two to test on."""
    folder = tmp_path_factory.mktemp("cohort")
    rows = [["patient_id", "slide_id", "label", "split"]]
    for number in range(11):
        label, patient = number % 2, 0 if number == 10 else number
        split = "train" if patient < 6 else "validation" if patient < 8 else "test"
        label = 0 if number == 10 else label
        rows.append([f"p{patient}", f"s{number:02d}", LABELS[label], split])
        write_bag(folder / "features" / f"s{number:02d}.h5", label=label, seed=number)
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def make_worker(cohort: Path, state: Path, heard: list[Event] | None = None, **policy: Any) -> Worker:
    config = SiteConfig(
        site=SiteSection(name="A"),
        data=DataSection(manifest=cohort / "manifest.csv", features=cohort / "features"),
        policy=PolicySection(**policy),
        state=state,
    )
    return Worker(config, federation="lung", events=EventLog(None, *([] if heard is None else [heard.append])))


@pytest.fixture
def worker(cohort: Path, tmp_path: Path) -> Worker:
    return make_worker(cohort, tmp_path)


def make_model(seed: int = 7) -> BagModel:
    return build_model("acmil", width=WIDTH, n_classes=2, options=OPTIONS, seed=seed)


@pytest.fixture
def model() -> Arrays:
    return to_arrays(make_model(seed=1))


def train_order(model: Arrays, round_: int = 1, rounds: int = 2, **changes: Any) -> Train:
    values: dict[str, Any] = {
        "facts": FACTS, "round": round_, "rounds": rounds, "base": hash_arrays(model), "local_epochs": 2,
        "learning_rate": 1e-2, "weight_decay": 1e-3, "class_weights": True,
    }  # fmt: skip
    return Train(**values | changes)


def changed_facts(**changes: Any) -> RunFacts:
    return FACTS.model_copy(update=changes)


def test_it_describes_what_it_has(worker: Worker) -> None:
    answer, arrays = worker.carry_out(Describe(facts=FACTS), {})
    assert isinstance(answer, Description)
    assert arrays == {}
    assert answer.patients == {"train": 6, "validation": 2, "test": 2}
    assert answer.slides == {"train": 7, "validation": 2, "test": 2}
    assert answer.contract.model_dump() == {
        "encoder": "e", "encoder_sha256": "0" * 64, "width": WIDTH, "mpp": 0.5, "patch_px": 128, "transform": "t",
    }  # fmt: skip
    assert decode_answer(encode(answer)) == (answer, {})


def test_training_is_the_literal_call(worker: Worker, cohort: Path, model: Arrays) -> None:
    order = train_order(model, round_=2, rounds=5)
    answer, trained = worker.carry_out(order, model)
    assert isinstance(answer, Update)

    manifest = load_cohort(cohort / "manifest.csv", labels=LABELS)
    examples = load_examples(manifest, cohort / "features", "train", width=WIDTH)
    expected = make_model()
    load_arrays(expected, model)
    before = evaluate(expected, load_examples(manifest, cohort / "features", "validation", width=WIDTH))
    # The seed is the federation's, the site's and the round's: another for each, the same whenever repeated.
    result = train(
        expected, examples, TrainSettings(2, 1e-2, 1e-3, True), seed=_seed("7/A/2"), span=(1 / 5, 2 / 5), device="cpu"
    )
    assert hash_arrays(trained) == hash_arrays(to_arrays(expected))
    assert answer.training_loss == result.loss
    assert answer.patients == {"image": 6}  # patients, not slides
    assert (answer.round, answer.base) == (2, hash_arrays(model))
    assert answer.validation == Metrics(
        loss=before.loss, auc=before.auc, balanced_accuracy=before.balanced_accuracy, macro_f1=before.macro_f1,
        slides=2, patients=2,
    )  # fmt: skip
    assert hash_arrays(trained) != order.base


@pytest.mark.parametrize(("accumulate", "precision"), [(3, "float32"), (1, "bfloat16"), (4, "bfloat16")])
def test_the_order_says_how_many_bags_a_step_takes_and_the_hospital_how_precise(
    cohort: Path, tmp_path: Path, model: Arrays, accumulate: int, precision: Any
) -> None:
    config = SiteConfig(
        site=SiteSection(name="A"),
        data=DataSection(manifest=cohort / "manifest.csv", features=cohort / "features"),
        compute=ComputeSection(precision=precision),
        state=tmp_path,
    )
    worker = Worker(config, federation="lung", events=EventLog())
    _, trained = worker.carry_out(train_order(model, accumulate_bags=accumulate), model)

    manifest = load_cohort(cohort / "manifest.csv", labels=LABELS)
    examples = load_examples(manifest, cohort / "features", "train", width=WIDTH)
    expected = make_model()
    load_arrays(expected, model)
    settings = TrainSettings(2, 1e-2, 1e-3, True, accumulate_bags=accumulate, precision=precision)
    train(expected, examples, settings, seed=_seed("7/A/1"), span=(0, 1 / 2))
    assert hash_arrays(trained) == hash_arrays(to_arrays(expected))
    assert hash_arrays(trained) != hash_arrays(worker.carry_out(train_order(model, accumulate_bags=2), model)[1])


def _seed(text: str) -> int:
    import hashlib

    return int(hashlib.sha256(text.encode()).hexdigest()[:14], 16)


def test_the_same_order_gives_the_same_bits_whatever_came_between(cohort: Path, tmp_path: Path, model: Arrays) -> None:
    order = train_order(model)
    one = make_worker(cohort, tmp_path)
    first = one.carry_out(order, model)
    one.carry_out(train_order(first[1], round_=2), first[1])
    torch.rand(5)
    # Asked again, and asked of an agent that was killed and started again.
    for worker in (one, make_worker(cohort, tmp_path)):
        answer, arrays = worker.carry_out(order, model)
        assert hash_arrays(arrays) == hash_arrays(first[1])
        assert answer.model_copy(update={"seconds": 0.0}) == first[0].model_copy(update={"seconds": 0.0})


def test_rounds_and_sites_train_differently(cohort: Path, tmp_path: Path, model: Arrays) -> None:
    worker = make_worker(cohort, tmp_path)
    one = worker.carry_out(train_order(model, round_=1), model)[1]
    two = worker.carry_out(train_order(model, round_=2), model)[1]
    assert hash_arrays(one) != hash_arrays(two)


def test_the_model_that_came_is_left_as_it_was(worker: Worker, model: Arrays) -> None:
    before = hash_arrays(model)
    worker.carry_out(train_order(model), model)
    assert hash_arrays(model) == before


@pytest.mark.parametrize("split", ["validation", "test"])
def test_it_evaluates_the_model_that_came(worker: Worker, cohort: Path, model: Arrays, split: Any) -> None:
    order = Evaluate(facts=FACTS, round=3, base=hash_arrays(model), split=split)
    answer, arrays = worker.carry_out(order, model)
    assert isinstance(answer, Evaluation)
    assert arrays == {}
    expected = make_model()
    load_arrays(expected, model)
    manifest = load_cohort(cohort / "manifest.csv", labels=LABELS)
    metrics = evaluate(expected, load_examples(manifest, cohort / "features", split, width=WIDTH))
    assert (answer.metrics.loss, answer.metrics.auc) == (metrics.loss, metrics.auc)
    assert (answer.round, answer.base) == (3, hash_arrays(model))


def test_the_final_model_is_kept_in_the_hospital(worker: Worker, tmp_path: Path, model: Arrays) -> None:
    order = Finish(facts=FACTS, base=hash_arrays(model), best_round=4)
    assert worker.carry_out(order, model) == (Receipt(), {})
    kept, metadata = load_model(tmp_path / "r1" / FINAL_MODEL)
    assert hash_arrays(to_arrays(kept)) == hash_arrays(model)
    assert (metadata["federation"], metadata["run"], metadata["round"]) == ("lung", "r1", "4")


def test_being_kept_out_is_confirmed_and_said(cohort: Path, tmp_path: Path) -> None:
    heard: list[Event] = []
    worker = make_worker(cohort, tmp_path, heard)
    assert worker.carry_out(Refuse(facts=FACTS, reason="other encoder"), {}) == (Receipt(), {})
    assert [(event.kind, event.values) for event in heard] == [("refused", {"reason": "other encoder"})]
    assert list(tmp_path.iterdir()) == []


def test_policy_comes_first(cohort: Path, tmp_path: Path, model: Arrays) -> None:
    heard: list[Event] = []
    elsewhere = cohort / "nothing-is-read"
    for policy, order in (
        ({"federations": ["liver"]}, Describe(facts=FACTS)),
        ({"models": ["other"]}, train_order(model)),
        ({"max_local_epochs": 1}, train_order(model)),
        ({}, Describe(facts=changed_facts(federation="liver"))),
        ({"models": []}, Finish(facts=FACTS, base=hash_arrays(model), best_round=0)),
    ):
        with pytest.raises(RefusedError, match="site A refuses: "):
            make_worker(elsewhere, tmp_path, heard, **policy).carry_out(order, model)
    assert [(event.kind, event.values["reason"]) for event in heard] == [
        ("order_refused", reason) for reason in ("federation", "model", "epochs", "federation", "model")
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["train", "evaluate", "finish"])
def test_a_model_that_is_not_the_stated_one_is_refused(
    worker: Worker, tmp_path: Path, model: Arrays, kind: str
) -> None:
    orders = {
        "train": train_order(model, base="f" * 64),
        "evaluate": Evaluate(facts=FACTS, round=1, base="f" * 64, split="test"),
        "finish": Finish(facts=FACTS, base="f" * 64, best_round=1),
    }
    with pytest.raises(RefusedError, match="does not have the hash the order states"):
        worker.carry_out(orders[kind], model)
    with pytest.raises(RefusedError, match="does not have the hash"):
        worker.carry_out(orders[kind].model_copy(update={"base": hash_arrays(model)}), {})
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_another_shape_is_refused(worker: Worker, model: Arrays) -> None:
    other = to_arrays(build_model("acmil", width=WIDTH, n_classes=2, options=OPTIONS | {"inner": 5}, seed=0))
    with pytest.raises(RefusedError, match="came with shape"):
        worker.carry_out(train_order(other), other)
    with pytest.raises(RefusedError, match="other parameters"):
        worker.carry_out(train_order({}), {})


def test_an_unknown_model_or_option_is_an_error_of_ours(worker: Worker, model: Arrays) -> None:
    for section in (ModelSection(name="acmill"), ModelSection(options={"iner": 3})):
        with pytest.raises(FedpathError, match=r"acmill|iner"):
            worker.carry_out(train_order(model, facts=changed_facts(model=section)), model)


def test_figures_over_few_patients_are_held_back(cohort: Path, tmp_path: Path, model: Arrays) -> None:
    worker = make_worker(cohort, tmp_path, min_patients=3)  # two validate, two test, six train
    answer, trained = worker.carry_out(train_order(model), model)
    assert isinstance(answer, Update)
    assert answer.validation == Metrics()  # not even how many
    assert trained
    evaluation, _ = worker.carry_out(Evaluate(facts=FACTS, round=1, base=hash_arrays(model), split="test"), model)
    assert isinstance(evaluation, Evaluation)
    assert evaluation.metrics == Metrics()
    two = make_worker(cohort, tmp_path, min_patients=2)
    answer, _ = two.carry_out(train_order(model), model)
    assert isinstance(answer, Update)
    assert answer.validation.patients == 2


def test_counts_of_few_patients_are_held_back(cohort: Path, tmp_path: Path) -> None:
    description, _ = make_worker(cohort, tmp_path, min_patients=3).carry_out(Describe(facts=FACTS), {})
    assert isinstance(description, Description)
    assert description.patients == {"train": 6, "validation": None, "test": None}
    assert (description.slides["validation"], description.slides["test"]) == (None, None)
    with pytest.raises(RefusedError, match="fewer training patients than its policy asks for"):
        make_worker(cohort, tmp_path, min_patients=7).carry_out(Describe(facts=FACTS), {})


def test_too_few_patients_do_not_train(cohort: Path, tmp_path: Path, model: Arrays) -> None:
    heard: list[Event] = []
    with pytest.raises(RefusedError, match="fewer training patients than its policy asks for") as caught:
        make_worker(cohort, tmp_path, heard, min_patients=7).carry_out(train_order(model), model)
    assert "6" not in caught.value.message  # the text goes to the coordinator: how many there are stays here
    assert [event for event in heard if event.kind != "phase"] == []
    make_worker(cohort, tmp_path, min_patients=6).carry_out(train_order(model), model)


def copied(cohort: Path, folder: Path) -> Path:
    (folder / "features").mkdir(parents=True)
    for path in (cohort / "manifest.csv", *(cohort / "features").iterdir()):
        (folder / path.relative_to(cohort)).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"encoder": "other"}, "encoder"),
        ({"encoder_sha256": "1" * 64}, "encoder_sha256"),
        ({"mpp": 0.25}, "mpp"),
        ({"patch_px": 64}, "patch_px"),
        ({"transform": "u"}, "transform"),
    ],
)
def test_features_made_differently_are_named(cohort: Path, tmp_path: Path, change: dict[str, Any], word: str) -> None:
    mixed = copied(cohort, tmp_path / "mixed")
    write_bag(mixed / "features" / "s05.h5", **change)
    with pytest.raises(DataError, match=rf"s05\.h5: made with another {word} than s00\.h5") as caught:
        make_worker(mixed, tmp_path).carry_out(Describe(facts=FACTS), {})
    assert "fedpath slides encode" in caught.value.remedy


def test_a_missing_or_broken_feature_file_is_named(cohort: Path, tmp_path: Path, model: Arrays) -> None:
    lacking = copied(cohort, tmp_path / "lacking")
    path = lacking / "features" / "s00.h5"
    path.unlink()
    for order in (Describe(facts=FACTS), train_order(model)):
        with pytest.raises(DataError, match=r"s00\.h5"):
            make_worker(lacking, tmp_path).carry_out(order, model)
    path.write_bytes((cohort / "features" / "s01.h5").read_bytes()[:700])
    for order in (Describe(facts=FACTS), train_order(model)):
        with pytest.raises(DataError, match=r"s00\.h5"):
            make_worker(lacking, tmp_path).carry_out(order, model)


def test_a_label_that_the_federation_does_not_know(worker: Worker) -> None:
    with pytest.raises(DataError, match=r"manifest\.csv, line \d+: label 'tumour'"):
        worker.carry_out(Describe(facts=changed_facts(labels=["normal", "cancer"])), {})


def test_bags_are_loaded_once_a_run_and_again_for_another_question(cohort: Path, tmp_path: Path, model: Arrays) -> None:
    own = copied(cohort, tmp_path / "own")
    worker = make_worker(own, tmp_path)
    order = Evaluate(facts=FACTS, round=1, base=hash_arrays(model), split="test")
    first = worker.carry_out(order, model)[0]
    for path in (own / "features").iterdir():
        path.unlink()
    assert worker.carry_out(order, model)[0] == first  # from memory

    swapped = order.model_copy(update={"facts": changed_facts(labels=LABELS[::-1])})
    with pytest.raises(DataError, match="no feature file"):
        worker.carry_out(swapped, model)  # other labels: other targets


def test_bags_of_another_width_are_not_taken_from_memory(worker: Worker, model: Arrays) -> None:
    worker.carry_out(Evaluate(facts=FACTS, round=1, base=hash_arrays(model), split="test"), model)
    wide = to_arrays(build_model("acmil", width=5, n_classes=2, options=OPTIONS, seed=0))
    facts = changed_facts(features=FeaturesSection(encoder="e", width=5))
    with pytest.raises(DataError, match="features are 4 wide, the federation's are 5"):
        worker.carry_out(Evaluate(facts=facts, round=1, base=hash_arrays(wide), split="test"), wide)


def test_a_model_whose_figures_are_no_numbers_is_refused(worker: Worker, model: Arrays) -> None:
    # Finite parameters can still overflow: another site's update may have made them huge.
    huge = {name: np.full_like(array, 3e38) for name, array in model.items()}
    order = Evaluate(facts=FACTS, round=1, base=hash_arrays(huge), split="test")
    with pytest.raises(RefusedError, match="the model that came gives no finite figures"):
        worker.carry_out(order, huge)
    with pytest.raises(RefusedError, match="the model that came gives no finite figures"):
        worker.carry_out(train_order(huge), huge)


@pytest.mark.parametrize("times", [1, 2])
def test_where_a_process_that_trains_is_lost_it_is_trained_once_more(
    worker: Worker, cohort: Path, tmp_path: Path, model: Arrays, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    heard: list[Event] = []
    expected = worker.carry_out(train_order(model), model)[1]
    attempts: list[None] = []

    def lost(trained: BagModel, *values: Any, **more: Any) -> TrainResult:
        attempts.append(None)
        result = train(trained, *values, **more)  # some of it was done
        if len(attempts) <= times:
            raise TrainingProcessError("process 1 was killed", remedy="more memory")
        return result

    monkeypatch.setattr("fedpath.client.agent.worker.train", lost)
    unlucky = make_worker(cohort, tmp_path / "other", heard)
    if times == 1:
        assert hash_arrays(unlucky.carry_out(train_order(model), model)[1]) == hash_arrays(expected)
    else:
        with pytest.raises(TrainingProcessError):
            unlucky.carry_out(train_order(model), model)
    assert len(attempts) == 2
    assert [event.values["reason"] for event in heard if event.kind == "training_lost"] == ["process 1 was killed"]


def test_training_that_diverges_sends_nothing(worker: Worker, model: Arrays) -> None:
    with pytest.raises(FedpathError, match="training diverged"):
        worker.carry_out(train_order(model, learning_rate=1e30, local_epochs=20), model)


def test_a_gpu_that_is_not_there(cohort: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    config = SiteConfig.model_validate(
        {
            "site": {"name": "A"},
            "data": {"manifest": cohort / "manifest.csv", "features": cohort / "features"},
            "compute": {"device": "cuda"},
        }
    )
    with pytest.raises(FedpathError, match="'cuda', but torch finds no GPU"):
        Worker(config, federation="lung", events=EventLog())


def test_progress_names_no_patient_and_no_slide(cohort: Path, tmp_path: Path, model: Arrays) -> None:
    heard: list[Event] = []
    worker = make_worker(cohort, tmp_path, heard)
    worker.carry_out(Describe(facts=FACTS), {})
    worker.carry_out(train_order(model), model)
    told = [event.values["phase"] if event.kind == "phase" else event.kind for event in heard if event.kind != "step"]
    assert told == ["describing", "described", "reading", "validating", "validated", "training", "trained"]
    steps = [event.values for event in heard if event.kind == "step"]
    assert steps[-1]["done"] == steps[-1]["total"] == 14


@pytest.mark.parametrize("encoding", ["float16", "bfloat16", "int8"])
def test_an_order_that_is_repeated_or_comes_after_a_kill_is_answered_with_the_same_bits(
    cohort: Path, tmp_path: Path, encoding: Encoding
) -> None:
    """What the first answer to round 2 left out does not count before an order says so."""
    options = {"inner": 24, "attention": 8}
    facts = changed_facts(model=ModelSection(name="acmil", options=options))
    first, second = (
        to_arrays(build_model("acmil", width=WIDTH, n_classes=2, options=options, seed=seed)) for seed in (1, 2)
    )
    changes = {"facts": facts, "exchange": ExchangeSection(encoding=encoding)}
    worker = make_worker(cohort, tmp_path)
    worker.carry_out(train_order(first, **changes), first)
    order = train_order(second, 2, counted=1, **changes)

    def answer(worker: Worker, order: Train = order) -> bytes:
        update, arrays = worker.carry_out(order, second)
        assert isinstance(update, Update)
        return encode(update.model_copy(update={"seconds": 0.0}), arrays)

    answers = {answer(worker), answer(worker), answer(make_worker(cohort, tmp_path))}
    assert len(answers) == 1
    # Where the update of round 1 did not count, it left nothing.
    dropped = order.model_copy(update={"counted": 0})
    assert answer(worker, dropped) == answer(make_worker(cohort, tmp_path / "fresh"), dropped)
    assert answer(worker, dropped) not in answers
    assert answer(worker) in answers


def test_nothing_is_kept_where_nothing_is_left_out(cohort: Path, tmp_path: Path, model: Arrays) -> None:
    for changes_only in (False, True):
        order = train_order(model, exchange=ExchangeSection(changes_only=changes_only))
        make_worker(cohort, tmp_path).carry_out(order, model)
    assert not list(tmp_path.rglob("kept"))
