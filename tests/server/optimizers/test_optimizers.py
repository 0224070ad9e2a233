"""The coordinator's optimizers against the algorithm's lines, number by number, and against Flower's."""

import math
from collections.abc import Callable

import flwr.serverapp.strategy as flower
import numpy as np
import pytest
from flower_replies import aggregate
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from fedpath.core.config.federated import OptimizerSection
from fedpath.core.errors import FederationError
from fedpath.core.exchange.stored import BLOCK
from fedpath.core.exchange.wire import Arrays, hash_arrays
from fedpath.server.optimizers import ServerOptimizer, server_optimizer

SHAPES = {"image/w": (5, 7), "image/b": (7,), "clinical/w": (3,), "norm/s": (), "image/none": (0, 4)}
NAMES = ("fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi")
Wide = dict[str, NDArray[np.float64]]


def model(seed: int, size: float = 1.0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.normal(size=shape) * size, dtype=np.float32) for name, shape in SHAPES.items()}


def moved(reference: Arrays, seed: int) -> Arrays:
    """A model near another, as one round leaves it; every array has memory of its own."""
    return {name: np.asarray(reference[name] + change) for name, change in model(seed, 0.05).items()}


class Literal:
    """One number after the other in float64, as the papers write it. v starts at ``second``, τ² in the paper."""

    def __init__(self, settings: OptimizerSection, second: float) -> None:
        defaults = {"fedavg": 1.0, "fedavgm": 1.0, "fedadagrad": 0.1, "fedadam": 0.01, "fedyogi": 0.01}
        self.settings, self.rate = settings, settings.learning_rate or defaults[settings.name]
        self.first: dict[tuple[str, tuple[int, ...]], float] = {}
        self.second: dict[tuple[str, tuple[int, ...]], float] = {}
        self.start = second

    def step(self, reference: Wide, combined: Wide) -> Wide:
        result = {name: np.array(array) for name, array in reference.items()}
        for name, array in result.items():
            for place in np.ndindex(array.shape):
                key = (name, place)
                delta = float(combined[name][place] - reference[name][place])
                array[place] += self.rate * self.direction(key, delta)
        return result

    def direction(self, key: tuple[str, tuple[int, ...]], delta: float) -> float:
        one, name = self.settings, self.settings.name
        if name == "fedavg":
            return delta
        if name == "fedavgm":
            self.first[key] = one.momentum * self.first.get(key, 0.0) + delta
            return self.first[key]
        beta = 0.0 if name == "fedadagrad" else one.momentum
        m = self.first[key] = beta * self.first.get(key, 0.0) + (1 - beta) * delta
        v, fading = self.second.get(key, self.start), one.second_momentum
        match name:
            case "fedadagrad":
                v = v + delta**2
            case "fedadam":
                v = fading * v + (1 - fading) * delta**2
            case "fedyogi":
                v = v - (1 - fading) * delta**2 * np.sign(v - delta**2)
        self.second[key] = v
        return m / (math.sqrt(v) + one.adaptivity)


def steps(optimizer: ServerOptimizer | Literal, rounds: int) -> list[Wide]:
    """Models after each of some rounds whose updates are the same for every optimizer's own model."""
    reference = model(0)
    seen = []
    for index in range(rounds):
        combined = moved(reference, 1 + index)
        after = optimizer.step(reference, combined)  # type: ignore[arg-type]
        seen.append({name: np.array(array, np.float64) for name, array in after.items()})
        reference = {name: np.asarray(array, np.float32) for name, array in after.items()}
    return seen


def assert_near(ours: list[Wide], theirs: list[Wide], rtol: float = 1e-4) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=rtol, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"learning_rate": 0.3, "momentum": 0.5, "second_momentum": 0.8}])
def test_steps_are_those_of_the_paper(name: str, options: dict[str, float]) -> None:
    settings = OptimizerSection.model_validate({"name": name, **options})
    assert_near(steps(server_optimizer(settings, model(0)), 5), steps(Literal(settings, settings.adaptivity**2), 5))


def test_without_momentum_nothing_is_remembered_and_the_mean_is_the_model() -> None:
    optimizer, combined = server_optimizer(OptimizerSection(), model(0)), model(1)
    assert optimizer.step(model(0), combined) is combined
    assert optimizer.state() == {}
    plain = OptimizerSection(name="fedavgm", momentum=0.0)
    assert hash_arrays(server_optimizer(plain, model(0)).step(model(0), model(1))) == hash_arrays(combined)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_continues_from_the_state_with_the_same_bits(name: str) -> None:
    settings = OptimizerSection.model_validate({"name": name, "learning_rate": 0.2})
    reference = model(0)
    first = server_optimizer(settings, reference)
    for index in range(3):
        kept = {key: array.copy() for key, array in first.state().items()}
        before, reference = reference, first.step(reference, moved(reference, index))
    second = server_optimizer(settings, reference)
    second.load(kept)
    again = second.step(before, moved(before, 2))
    assert hash_arrays(again) == hash_arrays(reference)
    assert hash_arrays(first.state()) == hash_arrays(second.state())
    assert all(array.dtype == np.float32 for array in kept.values())


def test_a_state_of_another_optimizer_or_model_is_refused() -> None:
    adam = server_optimizer(OptimizerSection(name="fedadam"), model(0))
    for other in (
        server_optimizer(OptimizerSection(name="fedavgm"), model(0)).state(),
        server_optimizer(OptimizerSection(name="fedadam"), {"image/w": model(0)["image/w"]}).state(),
        adam.state() | {"first:image/w": np.zeros(35, np.float32)},
        {},
    ):
        with pytest.raises(FederationError, match="does not fit the run"):
            adam.load(other)


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_is_left_as_it_was_whatever_memory_the_updates_share_with_it(name: str) -> None:
    settings = OptimizerSection.model_validate({"name": name, "learning_rate": 0.5})
    reference = model(0)
    before = hash_arrays(reference)
    optimizer = server_optimizer(settings, reference)
    combined = moved(reference, 1)
    combined["clinical/w"] = reference["clinical/w"]
    combined["image/b"] = reference["image/b"][::-1]
    combined["image/w"].flags.writeable = False
    after = optimizer.step(reference, combined)
    assert hash_arrays(reference) == before
    assert np.array_equal(after["clinical/w"], reference["clinical/w"])
    assert not np.array_equal(after["image/b"], reference["image/b"])


@pytest.mark.parametrize("name", NAMES)
def test_a_group_that_nobody_trained_is_not_carried_on_by_its_momentum(name: str) -> None:
    optimizer = server_optimizer(OptimizerSection.model_validate({"name": name, "learning_rate": 0.5}), model(0))
    first = optimizer.step(model(0), moved(model(0), 1))
    kept = {key: array.copy() for key, array in optimizer.state().items()}
    second = optimizer.step(first, moved(first, 2) | {"clinical/w": first["clinical/w"].copy()})
    assert np.array_equal(second["clinical/w"], first["clinical/w"])
    assert not np.array_equal(second["image/b"], first["image/b"])
    for key in kept:
        assert np.array_equal(kept[key], optimizer.state()[key]) is (key.endswith(("clinical/w", "none"))), key


def test_running_statistics_are_the_combined_ones() -> None:
    reference = {"image/bn.running_var": np.ones(3, np.float32), "image/bn.weight": np.ones(3, np.float32)}
    combined = {name: array * np.float32(0.1) for name, array in reference.items()}
    settings = OptimizerSection(name="fedavgm", learning_rate=2.0)
    optimizer = server_optimizer(settings, reference)
    after = optimizer.step(reference, combined)
    np.testing.assert_allclose(after["image/bn.running_var"], 0.1)
    np.testing.assert_allclose(after["image/bn.weight"], -0.8, rtol=1e-6)
    assert set(optimizer.state()) == {"momentum:image/bn.weight"}


@pytest.mark.parametrize("name", ["fedavgm", "fedadagrad", "fedadam", "fedyogi"])
def test_large_arrays_are_stepped_block_by_block_like_small_ones(name: str) -> None:
    rng = np.random.default_rng(5)
    size = BLOCK + 100
    start, end = (rng.normal(size=size).astype(np.float32) for _ in range(2))
    settings = OptimizerSection.model_validate({"name": name})
    whole = server_optimizer(settings, {"image/w": start}).step({"image/w": start}, {"image/w": end.copy()})
    last = {"image/w": start[-100:]}
    part = server_optimizer(settings, last).step(last, {"image/w": end[-100:].copy()})
    assert np.array_equal(whole["image/w"][-100:], part["image/w"])


# Flower, on the same numbers. Its arrays cannot be empty.


class Flower:
    """A strategy of Flower as an optimizer; its rounds begin with ``first``."""

    def __init__(self, strategy: flower.FedAvg, first: int = 1, wide: bool = False) -> None:
        self.strategy, self.round, self.wide = strategy, first, wide

    def step(self, reference: Arrays, combined: Arrays) -> Arrays:
        record = ArrayRecord({name: Array(array) for name, array in reference.items()})
        self.strategy.current_arrays = record if self.wide else reference  # type: ignore[attr-defined]
        self.round += 1
        return aggregate(self.strategy, [combined], number=self.round - 1)


def without_start(optimizer: ServerOptimizer) -> ServerOptimizer:
    """Flower's v starts at 0, the paper's at τ²."""
    optimizer.load({k: np.zeros_like(v) for k, v in optimizer.state().items()})
    return optimizer


@pytest.fixture
def no_empty_array(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(SHAPES, "image/none")


@pytest.mark.usefixtures("no_empty_array")
@pytest.mark.parametrize(
    ("settings", "strategy"),
    [
        (
            OptimizerSection(name="fedavgm", momentum=0.7, learning_rate=0.8),
            lambda: flower.FedAvgM(server_learning_rate=0.8, server_momentum=0.7),
        ),
        (OptimizerSection(name="fedadagrad", learning_rate=0.1), lambda: flower.FedAdagrad(eta=0.1, tau=1e-3)),
        (
            OptimizerSection(name="fedyogi", learning_rate=0.01, momentum=0.9, second_momentum=0.95),
            lambda: flower.FedYogi(eta=0.01, beta_1=0.9, beta_2=0.95, tau=1e-3),
        ),
    ],
    ids=["fedavgm", "fedadagrad", "fedyogi"],
)
def test_flower_steps_alike_but_for_the_start_of_v(
    settings: OptimizerSection, strategy: Callable[[], flower.FedAvg]
) -> None:
    optimizer = server_optimizer(settings, model(0))
    theirs = steps(Flower(strategy(), wide=settings.name == "fedavgm"), 5)  # type: ignore[arg-type]
    assert_near(steps(without_start(optimizer), 5), theirs)


@pytest.mark.usefixtures("no_empty_array")
def test_flower_adam_divides_by_corrections_that_the_paper_does_not_have_and_that_are_a_round_late() -> None:
    # √(1 − β₂^(t+1)) / (1 − β₁^(t+1)) in round t = 1, 2, …: Kingma and Ba's have the exponent t. With the exponents so
    # large that the correction is 1, both are the same.
    settings = OptimizerSection(name="fedadam", learning_rate=0.01)
    ours = steps(without_start(server_optimizer(settings, model(0))), 5)
    adam = flower.FedAdam(eta=0.01, beta_1=0.9, beta_2=0.99, tau=1e-3)
    assert_near(ours, steps(Flower(adam, first=10_000), 5))  # type: ignore[arg-type]
    corrected = steps(Flower(flower.FedAdam(eta=0.01, beta_1=0.9, beta_2=0.99, tau=1e-3)), 1)[0]  # type: ignore[arg-type]
    factor = math.sqrt(1 - 0.99**2) / (1 - 0.9**2)
    start = model(0)["image/w"]
    np.testing.assert_allclose(corrected["image/w"] - start, factor * (ours[0]["image/w"] - start), rtol=1e-2)
