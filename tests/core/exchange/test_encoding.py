"""An update on the wire: each encoding against its definition, what it leaves out, what it cannot hold."""

import json
import math
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import get_args

import literal_wire
import numpy as np
import pytest

from fedpath.core.config.federated import Encoding, ExchangeSection
from fedpath.core.exchange.encoding import RESIDUAL, Written, _generator, in_words, write_update
from fedpath.core.exchange.groups import CONTROL
from fedpath.core.exchange.stored import BLOCK, CHANGES, F32, SCALES, ArrayFile, as_bytes
from fedpath.core.exchange.wire import Arrays, pack

LOSSY: tuple[Encoding, ...] = ("float16", "bfloat16", "int8")
NAMES = {"float32": "float32", "float16": "float16", "bfloat16": "uint16", "int8": "int8"}
SHAPE = (20, 9)


def drawn(seed: int, scale: float = 1.0, shape: tuple[int, ...] = SHAPE) -> F32:
    return np.asarray(np.random.default_rng(seed).normal(scale=scale, size=shape), np.float32)


def write(
    trained: Arrays,
    base: Arrays,
    encoding: Encoding,
    *,
    changes: bool = False,
    residual: Mapping[str, F32] | None = None,
    seed: int = 0,
) -> Written:
    exchange = ExchangeSection(encoding=encoding, changes_only=changes)
    return write_update(trained, base, exchange, residual=residual or {}, seed=seed)


def arrived(written: Written, folder: Path) -> Arrays:
    """What the coordinator reads."""
    path = folder / "update.safetensors"
    path.write_bytes(pack("{}", written.arrays))
    with ArrayFile(path) as file:
        return {name: file.array(name).copy() for name in file.names}


def one(values: F32, encoding: Encoding, folder: Path, **more: object) -> F32:
    """A change of an array of zeros, as it arrives."""
    base = {"g/w": np.zeros_like(values)}
    return arrived(write({"g/w": values}, base, encoding, changes=True, **more), folder)["g/w"]  # type: ignore[arg-type]


def awkward() -> F32:
    """Numbers of many sizes, ties among them, whose largest is 2."""
    ties = [1 + (2 * k + 1) * 2.0**-8 for k in range(8)] + [1 + (2 * k + 1) * 2.0**-11 for k in range(8)]
    sizes = [sign * 1.2345678 * 2.0**power for power in range(-149, 1) for sign in (1, -1)]
    subnormal = [k * 2.0**-149 for k in range(1, 40)]
    return np.array([[2.0, 0.0, -0.0, *ties, *sizes, *subnormal]], np.float32)


@pytest.mark.parametrize("encoding", ["float16", "bfloat16"])
def test_half_precision_rounds_to_nearest_and_ties_to_even(encoding: Encoding, tmp_path: Path) -> None:
    literal: Callable[[float], float] = getattr(literal_wire, encoding)
    values = awkward()
    came = one(values, encoding, tmp_path)
    assert came.reshape(-1).tolist() == [literal(float(number)) for number in values.reshape(-1)]
    assert np.signbit(came[0, 2])


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-5, 1.0, 1e30])
def test_int8_rounds_stochastically_to_multiples_of_its_scale(scale: float, tmp_path: Path) -> None:
    values = drawn(1, scale)
    written = write({"g/w": values}, {"g/w": np.zeros_like(values)}, "int8", seed=3)
    steps, step = literal_wire.int8(values, _generator(3, "g/w").random(values.size).tolist())
    assert written.arrays["g/w"].reshape(-1).tolist() == steps
    assert np.float32(json.loads(written.arrays.metadata[SCALES])["g/w"]) == step
    came = arrived(written, tmp_path)["g/w"]
    assert came.reshape(-1).tolist() == [float(np.float32(number) * step) for number in steps]
    assert np.abs(came - values).max() <= step


def test_int8_reaches_its_largest_number_and_draws_on_from_block_to_block(tmp_path: Path) -> None:
    values = drawn(2, shape=(2, BLOCK))
    values[1, -1] = 100.0
    written = write({"g/w": values}, {"g/w": np.zeros_like(values)}, "int8", seed=3)
    steps, _ = literal_wire.int8(values, _generator(3, "g/w").random(values.size).tolist())
    assert written.arrays["g/w"].reshape(-1).tolist() == steps
    assert steps[-1] in (126, 127)
    assert min(steps) >= -127


def test_stochastic_rounding_has_no_bias(tmp_path: Path) -> None:
    """Over n orders the mean of what arrives is the change: |mean − x| is some standard errors, and of either sign."""
    values, orders = drawn(4, shape=(30, 30)), 2000
    base = {"g/w": np.zeros_like(values)}
    total = np.zeros(values.shape)
    step = 0.0
    for seed in range(orders):
        written = write({"g/w": values}, base, "int8", seed=seed)
        step = float(json.loads(written.arrays.metadata[SCALES])["g/w"])
        total += written.arrays["g/w"].astype(np.float64) * step
    up = values / step - np.floor(values / step)  # the probability of rounding up
    spread = step * np.sqrt(up * (1 - up) / orders)
    deviations = ((total / orders - values) / np.maximum(spread, 1e-4 * step))[up * (1 - up) > 1e-3]
    assert np.abs(deviations).max() < 5
    assert abs(deviations.mean()) < 4 / math.sqrt(deviations.size)
    assert deviations.std() == pytest.approx(1, abs=0.1)


def test_the_same_order_gives_the_same_bits_and_another_one_others() -> None:
    trained = {"g/w": drawn(1), "g/v": drawn(2)}
    base = {name: np.zeros_like(array) for name, array in trained.items()}
    first, again, other = (write(trained, base, "int8", seed=seed).arrays for seed in (1, 1, 2))
    assert as_bytes(first, first.metadata) == as_bytes(again, again.metadata)
    assert not np.array_equal(first["g/w"], other["g/w"])
    # Another array that comes along, or not, changes nothing.
    alone = write({"g/v": trained["g/v"]}, base, "int8", seed=1)
    assert np.array_equal(alone.arrays["g/v"], first["g/v"])
    # Equal arrays are not rounded alike.
    twins = write({"g/w": trained["g/w"], "g/v": trained["g/w"]}, base, "int8", seed=1)
    assert not np.array_equal(twins.arrays["g/w"], twins.arrays["g/v"])


@pytest.mark.parametrize(("encoding", "changes"), [*product(("float16", "bfloat16"), (False, True)), ("int8", True)])
def test_all_that_was_sent_and_the_residual_are_all_true_changes(
    encoding: Encoding, changes: bool, tmp_path: Path
) -> None:
    """Σ sent + e = Σ x, after each round, though the model moves meanwhile as others move it."""
    residual: Arrays = {}
    base = {"g/w": drawn(0)}
    true = sent = np.zeros(SHAPE)
    for round_ in range(1, 25):
        trained = {"g/w": base["g/w"] + drawn(round_, 1e-3)}
        written = write(trained, base, encoding, changes=changes, residual=residual, seed=round_)
        came = arrived(written, tmp_path)["g/w"].astype(np.float64)
        true = true + (trained["g/w"].astype(np.float64) - base["g/w"])
        sent = sent + (came if changes else came - base["g/w"])
        residual = written.residual
        np.testing.assert_allclose(sent + residual[RESIDUAL + "g/w"], true, rtol=0, atol=1e-6)
        base = {"g/w": base["g/w"] + drawn(100 + round_, 1e-2)}
    # The residual is that of one rounding, and not of 24.
    assert np.abs(residual[RESIDUAL + "g/w"]).max() < {"float16": 2**-9, "bfloat16": 2**-6, "int8": 1e-4}[encoding]


def test_small_changes_of_large_weights_arrive_in_time() -> None:
    """Each round moves weights by less than half a step of bfloat16: without the residual they would stand still."""
    base, residual = np.full(SHAPE, 1.0, np.float32), dict[str, F32]()
    for round_ in range(40):
        written = write({"g/w": base + np.float32(0.0005)}, {"g/w": base}, "bfloat16", residual=residual, seed=round_)
        residual = written.residual
        came = written.arrays["g/w"]
        if came.dtype == np.uint16:
            came = (came.astype(np.uint32) << 16).view(np.float32)
        base = came
    np.testing.assert_allclose(base, 1 + 40 * 0.0005, rtol=0, atol=2**-8)


def test_an_array_that_is_not_sent_keeps_its_residual() -> None:
    old = {RESIDUAL + "g/w": drawn(1, 1e-3), RESIDUAL + "h/w": drawn(2, 1e-3), "personal:g/w": drawn(3)}
    written = write({"g/w": drawn(4)}, {"g/w": drawn(5), "h/w": drawn(6)}, "int8", residual=old)
    assert written.residual.keys() == {RESIDUAL + "g/w", RESIDUAL + "h/w"}
    assert written.residual[RESIDUAL + "h/w"] is old[RESIDUAL + "h/w"]
    assert not np.array_equal(written.residual[RESIDUAL + "g/w"], old[RESIDUAL + "g/w"])


@pytest.mark.parametrize("changes", [False, True])
def test_float32_leaves_nothing_out(changes: bool, tmp_path: Path) -> None:
    trained, base = {"g/w": drawn(1), "g/b": drawn(2, shape=(3,))}, {"g/w": drawn(3), "g/b": drawn(4, shape=(3,))}
    written = write(trained, base, "float32", changes=changes)
    came = arrived(written, tmp_path)
    for name, array in came.items():
        assert np.array_equal(array, trained[name] - base[name] if changes else trained[name])
    assert written.residual == {}
    assert written.arrays.metadata == ({CHANGES: "true"} if changes else {})


def test_what_is_trained_is_not_written_to() -> None:
    trained, base, residual = {"g/w": drawn(1)}, {"g/w": drawn(2)}, {RESIDUAL + "g/w": drawn(3, 1e-3)}
    before = [array.tobytes() for group in (trained, base, residual) for array in group.values()]
    for encoding, changes in product(get_args(Encoding), (False, True)):
        write(trained, base, encoding, changes=changes, residual=residual)
    assert [array.tobytes() for group in (trained, base, residual) for array in group.values()] == before


@pytest.mark.parametrize("encoding", LOSSY)
def test_vectors_numbers_and_few_numbers_travel_as_they_are(encoding: Encoding, tmp_path: Path) -> None:
    exact: Arrays = {
        "g/running_var": np.full(512, 1e-7, np.float32) + np.abs(drawn(1, shape=(512,))),
        "g/num_batches_tracked": np.array(70001, np.float32),
        "g/one": np.array([[1e-9]], np.float32),
        "g/few": drawn(2, shape=(8, 8)),
        "g/none": np.zeros((0, 3), np.float32),
    }
    trained = exact | {"g/w": drawn(3), "g/all": drawn(4, shape=(20000,))}
    base = {name: np.zeros_like(array) for name, array in trained.items()}
    written = write(trained, base, encoding)
    assert {name for name, array in written.arrays.items() if array.dtype == np.float32} == exact.keys()
    came = arrived(written, tmp_path)
    for name, array in exact.items():
        assert came[name].tobytes() == array.tobytes()
        assert came[name].shape == array.shape
    assert written.residual.keys() == {RESIDUAL + "g/w", RESIDUAL + "g/all"}


@pytest.mark.parametrize("encoding", LOSSY)
def test_what_did_not_change_arrives_as_no_change(encoding: Encoding, tmp_path: Path) -> None:
    same = drawn(1)
    written = write({"g/w": same}, {"g/w": same}, encoding, changes=True)
    assert written.arrays["g/w"].dtype.name == NAMES[encoding]
    assert not arrived(written, tmp_path)["g/w"].any()
    assert written.residual == {}


@pytest.mark.parametrize(
    ("encoding", "largest"),
    [("float16", 65520.0), ("float16", 1e30), ("float16", 1e-9), ("bfloat16", 3.4e38), ("int8", 3.4e38)],
)
def test_what_a_type_cannot_hold_travels_in_float32(encoding: Encoding, largest: float, tmp_path: Path) -> None:
    values = np.full(SHAPE, largest, np.float32)
    written = write({"g/w": values}, {"g/w": np.zeros_like(values)}, encoding, changes=True)
    assert written.arrays["g/w"].dtype == np.float32
    assert np.array_equal(arrived(written, tmp_path)["g/w"], values)
    assert written.residual == {}


@pytest.mark.parametrize(
    ("encoding", "largest"),
    [("float16", 65519.0), ("float16", 1e-5), ("bfloat16", 3.3e38), ("int8", 1.6e38), ("int8", 1e-44)],
)
def test_what_it_can_hold_does_not(encoding: Encoding, largest: float, tmp_path: Path) -> None:
    values = np.full(SHAPE, largest, np.float32)
    written = write({"g/w": values}, {"g/w": np.zeros_like(values)}, encoding, changes=True)
    assert written.arrays["g/w"].dtype.name == NAMES[encoding]
    np.testing.assert_allclose(arrived(written, tmp_path)["g/w"], values, rtol=1 / 64, atol=0)


@pytest.mark.parametrize("encoding", LOSSY)
def test_an_array_that_travels_in_float32_brings_its_residual_along(encoding: Encoding, tmp_path: Path) -> None:
    values, left = np.full(SHAPE, 3.4e38, np.float32), np.full(SHAPE, -1e33, np.float32)
    written = write({"g/w": values}, {"g/w": 0 * left}, encoding, changes=True, residual={RESIDUAL + "g/w": left})
    assert np.array_equal(arrived(written, tmp_path)["g/w"], values + left)
    assert written.residual == {}


@pytest.mark.parametrize("encoding", LOSSY)
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_arrives_as_it_is(encoding: Encoding, number: float, tmp_path: Path) -> None:
    """The coordinator refuses it by name; the residual is not spoilt for what comes after."""
    values = drawn(1)
    values[3, 4] = number
    written = write({"g/w": values}, {"g/w": drawn(2)}, encoding, changes=True)
    came = arrived(written, tmp_path)["g/w"]
    np.testing.assert_array_equal(came[3, 4], np.float32(number))
    assert np.isfinite(np.delete(came.reshape(-1), 3 * SHAPE[1] + 4)).all()
    assert written.residual == {}


@pytest.mark.parametrize("encoding", ["float16", "bfloat16"])
def test_weights_that_moved_do_not_arrive_as_the_model_that_came(encoding: Encoding, tmp_path: Path) -> None:
    """A group that only one hospital trains has weights of the type after a round, and moves by less than a step."""
    base = np.full(SHAPE, 1.0, np.float32)
    trained = np.nextafter(base, np.float32(2))
    assert np.array_equal(arrived(write({"g/w": trained}, {"g/w": base}, encoding), tmp_path)["g/w"], trained)


@pytest.mark.parametrize(("encoding", "changes"), [("float16", False), ("bfloat16", True), ("int8", True)])
def test_changes_of_control_variates_are_changes_already(encoding: Encoding, changes: bool, tmp_path: Path) -> None:
    control = drawn(3, 0.1)
    trained = {"g/w": drawn(1), CONTROL + "g/w": control}
    written = write(trained, {"g/w": drawn(2)}, encoding, changes=changes)
    came = arrived(written, tmp_path)[CONTROL + "g/w"]
    np.testing.assert_allclose(came, control, rtol=0, atol=float(np.abs(control).max()) / 64)
    np.testing.assert_allclose(came + written.residual[RESIDUAL + CONTROL + "g/w"], control, rtol=0, atol=1e-7)


def test_how_an_update_is_written_is_said_in_words() -> None:
    trained, base = {"g/w": drawn(1), "g/b": drawn(2, shape=(3,))}, {"g/w": drawn(3), "g/b": drawn(4, shape=(3,))}
    said = {
        (encoding, changes): in_words(write(trained, base, encoding, changes=changes).arrays)
        for encoding, changes in product(get_args(Encoding), (False, True))
    }
    assert said == {
        (encoding, changes): f"{encoding} {'changes' if changes or encoding == 'int8' else 'weights'}"
        for encoding, changes in said
    }
    assert in_words(trained) == "float32 weights"


def test_bytes() -> None:
    """A large array takes the bytes of its type, and a scale."""
    trained = {"image/blocks.11.attention.weight": drawn(1, shape=(300, 300))}
    base = {name: np.zeros_like(array) for name, array in trained.items()}
    sizes = {encoding: len(pack("{}", write(trained, base, encoding).arrays)) for encoding in get_args(Encoding)}
    numbers = 300 * 300
    for encoding, width in {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}.items():
        assert width * numbers < sizes[encoding] < width * numbers + 300
