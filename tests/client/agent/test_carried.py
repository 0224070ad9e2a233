"""What a hospital adds to an order's arrays, what it keeps, and what of it leaves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_process import write_sites

from fedpath.client.agent.carried import PERSONAL, Came, Left, came_with
from fedpath.client.agent.memory import SiteMemory
from fedpath.client.agent.worker import Worker
from fedpath.core.config import load_site
from fedpath.core.config.federated import LocalSection
from fedpath.core.config.federation import FeaturesSection
from fedpath.core.config.model import ModelSection
from fedpath.core.config.site import ComputeSection, PolicySection
from fedpath.core.errors import RefusedError
from fedpath.core.events import Event, EventLog
from fedpath.core.exchange.groups import CONTROL, personal_names, to_arrays
from fedpath.core.exchange.messages import Describe, Evaluate, Evaluation, RunFacts, Train, Update
from fedpath.core.exchange.wire import Arrays, hash_arrays
from fedpath.core.models import BagModel, build_model
from fedpath.core.training.drift import DriftTerms

FACTS = RunFacts(
    federation="test",
    run="r1",
    seed=7,
    labels=["normal", "tumour"],
    features=FeaturesSection(encoder="noise", width=8, mpp=0.5, patch_px=128),
    model=ModelSection(name="acmil", options={"inner": 3, "attention": 2, "n_branches": 2}),
)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hospital with eight slides of eight patients to train on."""
    folder = tmp_path_factory.mktemp("hospitals")
    write_sites(folder, ["A"])
    return folder / "A"


def make_worker(cohort: Path, state: Path, heard: list[Event] | None = None, **policy: Any) -> Worker:
    config = load_site(cohort / "site.toml")
    config = config.model_copy(update={"state": state, "policy": PolicySection(**policy)})
    return Worker(config, federation="test", events=EventLog(None, *([] if heard is None else [heard.append])))


def make_model(seed: int = 7) -> BagModel:
    return build_model("acmil", width=8, n_classes=2, options=FACTS.model.options, seed=seed)


@pytest.fixture
def model() -> Arrays:
    return to_arrays(make_model(seed=1))


def train_order(model: Arrays, round_: int = 1, **changes: Any) -> Train:
    values: dict[str, Any] = {
        "facts": FACTS, "round": round_, "rounds": 2, "base": hash_arrays(model), "local_epochs": 2,
        "learning_rate": 1e-2, "weight_decay": 1e-3, "class_weights": True,
    }  # fmt: skip
    return Train(**values | changes)


def facts(**local: Any) -> RunFacts:
    return FACTS.model_copy(update={"local": LocalSection(**local)})


def scaffold_order(model: Arrays, control: Arrays, **changes: Any) -> Train:
    named = {CONTROL + name: array for name, array in control.items()}
    return train_order(model, **{"facts": facts(method="scaffold"), "control": hash_arrays(named)} | changes)


def whole(model: Arrays, control: Arrays) -> Arrays:
    return model | {CONTROL + name: array for name, array in control.items()}


def random_control(model: Arrays, seed: int = 0) -> Arrays:
    random = np.random.default_rng(seed)
    return {name: random.normal(0, 0.01, array.shape).astype(np.float32) for name, array in model.items()}


# --- SCAFFOLD ---------------------------------------------------------------------------------------------------------


def test_the_changes_of_c_i_leave_and_c_i_stays(cohort: Path, tmp_path: Path, model: Arrays) -> None:
    worker, control = make_worker(cohort, tmp_path), random_control(model)
    answer, sent = worker.carry_out(scaffold_order(model, control), whole(model, control))
    assert isinstance(answer, Update)
    assert answer.steps == 16  # 8 slides, twice
    assert sent.keys() == whole(model, control).keys()
    memory = SiteMemory(tmp_path / "r1")
    # Before the first update that counts c_i is 0: its change is c_i⁺ itself.
    c_1 = memory.load(1)
    assert {name: array.tolist() for name, array in c_1.items()} == {
        name: array.tolist() for name, array in sent.items() if name.startswith(CONTROL)
    }
    # It counted: the next round goes on from it. It did not: from 0 again.
    control = random_control(model, 1)
    order = scaffold_order(model, control, round_=2, counted=1)
    _, second = worker.carry_out(order, whole(model, control))
    c_2 = memory.load(2)
    for name, array in c_2.items():
        np.testing.assert_allclose(second[name], array - c_1[name], rtol=0, atol=1e-7)
    fresh = order.model_copy(update={"counted": 0})
    _, third = worker.carry_out(fresh, whole(model, control))
    assert hash_arrays(third) != hash_arrays(second)
    # The same order gives the same bits, whatever was done in between.
    assert hash_arrays(make_worker(cohort, tmp_path).carry_out(order, whole(model, control))[1]) == hash_arrays(second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: {n: a + 1 if n.startswith(CONTROL) else a for n, a in arrays.items()}, "control variate that"),
        (lambda arrays: {n: a if n.startswith(CONTROL) else a + 1 for n, a in arrays.items()}, "the model that came"),
        (lambda arrays: {n: a for n, a in arrays.items() if not n.startswith(CONTROL)}, "does not have the parameters"),
        (lambda arrays: arrays | {f"{CONTROL}image/x": np.zeros(1, np.float32)}, "does not have the parameters"),
    ],
)
def test_a_control_variate_that_is_not_what_the_order_says(
    cohort: Path,
    tmp_path: Path,
    model: Arrays,
    change: Any,
    message: str,
) -> None:
    control = random_control(model)
    with pytest.raises(RefusedError, match=message):
        make_worker(cohort, tmp_path).carry_out(scaffold_order(model, control), change(whole(model, control)))
    assert not (tmp_path / "r1" / "kept").exists()


def test_a_control_variate_that_nobody_needs(cohort: Path, tmp_path: Path, model: Arrays) -> None:
    with pytest.raises(RefusedError, match="nothing here is trained with SCAFFOLD"):
        make_worker(cohort, tmp_path).carry_out(train_order(model), whole(model, random_control(model)))


def test_of_a_group_that_may_not_leave_c_i_stays_as_it_was() -> None:
    """The coordinator's c did not move for it."""
    ones = np.ones(2, np.float32)
    came = Came(LocalSection(method="scaffold"), {}, own_control={"clinical/w": 5 * ones})
    left = Left(
        trained={"image/w": ones, "clinical/w": ones},
        personal={"image/norm": 7 * ones},
        control={"image/w": 2 * ones, "clinical/w": 3 * ones},
    )
    assert sorted(left.leaving({"image"}, came)) == [f"{CONTROL}image/w", "image/w"]
    kept = left.kept({"image"}, came)
    assert {name: array.tolist() for name, array in kept.items()} == {
        f"{CONTROL}image/w": [2, 2], f"{CONTROL}clinical/w": [5, 5], f"{PERSONAL}image/norm": [7, 7],
    }  # fmt: skip
    changes = left.leaving({"image", "clinical"}, came)
    assert changes[f"{CONTROL}clinical/w"].tolist() == [-2, -2]


def test_terms_are_c_minus_c_i() -> None:
    came = Came(
        LocalSection(method="scaffold"),
        {},
        control={"image/reduce.bias": np.full(3, 5.0, np.float32), "image/reduce.weight": np.zeros((3, 8), np.float32)},
        own_control={"image/reduce.bias": np.full(3, 2.0, np.float32)},
    )
    terms = came.terms(make_model())
    assert terms is not None
    assert terms.correction is not None
    assert terms.correction["reduce.bias"].tolist() == [3, 3, 3]
    assert Came(LocalSection(), {}).terms(make_model()) is None
    assert Came(LocalSection(method="fedprox", proximal=0.3), {}).terms(make_model()) == DriftTerms(0.3)


# --- personal layers --------------------------------------------------------------------------------------------------


def personal_facts() -> RunFacts:
    """Of a model with layer norms."""
    return FACTS.model_copy(
        update={
            "model": FACTS.model.model_copy(update={"name": "transmil", "options": {"inner": 8, "heads": 2}}),
            "local": LocalSection(personal=["norm"]),
        }
    )


def test_personal_layers_go_on_from_the_round_that_counted(cohort: Path, tmp_path: Path) -> None:
    run, heard = personal_facts(), list[Event]()
    built = build_model("transmil", width=8, n_classes=2, options=run.model.options, seed=7)
    names = personal_names(built, ["norm"])
    travels = {name: array for name, array in to_arrays(built).items() if name not in names}
    assert 0 < len(names) < len(to_arrays(built))
    worker = make_worker(cohort, tmp_path, heard)
    _, sent = worker.carry_out(train_order(travels, facts=run, learning_rate=1e-2), travels)
    assert sent.keys() == travels.keys()
    own = SiteMemory(tmp_path / "r1").load(1)
    assert own.keys() == {PERSONAL + name for name in names}

    def loss(counted: int) -> float | None:
        order = Evaluate(facts=run, round=1, base=hash_arrays(sent), split="validation", counted=counted)
        answer, _ = make_worker(cohort, tmp_path, heard).carry_out(order, sent)
        assert isinstance(answer, Evaluation)
        return answer.metrics.loss

    assert loss(1) != loss(0)
    assert [event for event in heard if event.kind == "carried_lost"] == []
    # Where it is gone the hospital goes on from the beginning, and its log says so.
    assert loss(2) == loss(0)
    (lost,) = [event.values for event in heard if event.kind == "carried_lost"]
    assert lost == {"round": 2, "order": "evaluate"}
    everything = to_arrays(built)
    with pytest.raises(RefusedError, match=r"holds image/\S+, which local\.personal says stays at each site"):
        worker.carry_out(train_order(everything, facts=run), everything)


def test_plain_training_keeps_nothing(cohort: Path, tmp_path: Path, model: Arrays) -> None:
    order = train_order(model, facts=facts(method="fedprox"), counted=3)
    assert came_with(order, model, SiteMemory(tmp_path)).lost is False
    make_worker(cohort, tmp_path).carry_out(order, model)
    assert not (tmp_path / "r1" / "kept").exists()


# --- what a policy says -----------------------------------------------------------------------------------------------


def test_steps_are_what_the_order_says_whatever_its_epochs(cohort: Path, tmp_path: Path, model: Arrays) -> None:
    worker = make_worker(cohort, tmp_path, max_local_epochs=1)
    answer, _ = worker.carry_out(train_order(model, facts=facts(steps=4), local_epochs=9), model)
    assert isinstance(answer, Update)
    assert (answer.steps, answer.patients["image"] <= 4) == (4, True)


def test_more_steps_than_a_policy_allows(cohort: Path, tmp_path: Path, model: Arrays) -> None:
    worker = make_worker(cohort, tmp_path, max_local_epochs=2)
    # Eight slides in threes: three steps a pass.
    worker.carry_out(train_order(model, facts=facts(steps=6), accumulate_bags=3), model)
    for steps in (7, 10**12):
        with pytest.raises(RefusedError, match=f"{steps} steps are more than 2 passes over its slides") as caught:
            worker.carry_out(train_order(model, facts=facts(steps=steps), accumulate_bags=3), model)
        assert "local.steps" in caught.value.remedy


def test_steps_that_train_on_fewer_patients_than_a_policy_asks_for(
    cohort: Path,
    tmp_path: Path,
    model: Arrays,
) -> None:
    worker = make_worker(cohort, tmp_path, min_patients=5)
    with pytest.raises(RefusedError, match="4 steps train on fewer patients than its policy asks for") as caught:
        worker.carry_out(train_order(model, facts=facts(steps=4)), model)
    assert "raise local.steps" in caught.value.remedy
    worker.carry_out(train_order(model, facts=facts(steps=8)), model)


@pytest.mark.parametrize("method", ["plain", "fedprox", "scaffold"])
def test_deepspeed_is_told_before_anything_is_promised(cohort: Path, tmp_path: Path, method: str) -> None:
    compute = ComputeSection(engine="deepspeed", device="cpu")
    config = load_site(cohort / "site.toml").model_copy(update={"state": tmp_path, "compute": compute})
    worker = Worker(config, federation="test", events=EventLog())
    if method == "plain":
        worker.carry_out(Describe(facts=facts()), {})
        return
    with pytest.raises(RefusedError, match=f"local.method = '{method}' does not go with its compute.engine"):
        worker.carry_out(Describe(facts=facts(method=method)), {})
