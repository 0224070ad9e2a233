"""Median and trimmed mean against their literal definitions, to the bit, and against Flower's."""

import itertools
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import flwr.serverapp.strategy as flower
import numpy as np
import pytest
from flower_replies import aggregate
from numpy.typing import NDArray
from stored_updates import counted, drawn, stored

from fedpath.core.config.federated import AggregationSection
from fedpath.core.exchange.stored import BLOCK, CHANGES, F32
from fedpath.core.exchange.wire import Arrays, hash_arrays
from fedpath.server.aggregation import Combined, Counted, combiner
from fedpath.server.aggregation.blocks import LocalPasses
from fedpath.server.aggregation.blockwise import Blockwise
from fedpath.server.aggregation.networks import network
from fedpath.server.aggregation.order import NearestMean, TrimmedMean, median

SHAPES = {"image/w": (5, 7), "image/long": (2 * BLOCK + 3,), "clinical/w": (3,), "norm/s": ()}
BOTH = pytest.mark.parametrize("combine", ["median", "trimmed-mean"])


def values(n: int, columns: int = 700, seed: int = 0) -> F32:
    """Normal numbers, with ties, zeros, equal columns, and the largest and the smallest floats among them."""
    random = np.random.default_rng([n, seed])
    drawn_NM = random.normal(size=(n, columns)).astype(np.float32)
    drawn_NM[:, 1:200] = random.integers(-2, 3, (n, 199))
    drawn_NM[:, 200] = 7.5
    drawn_NM[:, 201:220] *= np.float32(5e37)
    drawn_NM[:, 220:240] *= np.float32(1e-44)
    drawn_NM[:, 240:260] *= np.float32(10.0) ** random.integers(-30, 30, (n, 20)).astype(np.float32)
    return drawn_NM


def rounded(values_M: NDArray[np.float64]) -> F32:
    return values_M.astype(np.float32)


def summed(values_NM: NDArray[np.float64]) -> NDArray[np.float64]:
    """One after the other: numpy's own sum takes pairs."""
    return np.cumsum(values_NM, axis=0)[-1]


def literal_trimmed(values_NM: F32, f: int) -> F32:
    n = len(values_NM)
    kept = np.sort(values_NM.astype(np.float64), axis=0)[f : n - f]
    return rounded(summed(kept) / len(kept))


def literal_nearest(values_NM: F32, left_out: int) -> F32:
    """Column by column: of the sorted values those that are first when ordered by distance to the median."""
    result = []
    for column in np.sort(values_NM.astype(np.float64), axis=0).T:
        distance = np.abs(column - np.median(column))
        nearest = np.argsort(distance, kind="stable")[: len(column) - left_out]
        result.append(summed(np.sort(column[nearest])) / len(nearest))
    return rounded(np.array(result))


@pytest.mark.parametrize("n", range(1, 71))
def test_a_network_puts_the_wanted_ranks_in_their_rows(n: int) -> None:
    ordered = np.sort(values(n), axis=0)
    for first, last in {(0, n), ((n - 1) // 2, n // 2 + 1), (n // 4, n - n // 4), (0, 1), (n - 1, n)}:
        rows = values(n)
        for low, high, what in network(n, first, last):
            smaller, larger = np.minimum(rows[low], rows[high]), np.maximum(rows[low], rows[high])
            if what != 2:
                rows[low] = smaller
            if what != 1:
                rows[high] = larger
        assert np.array_equal(rows[first:last], ordered[first:last])


def test_a_network_of_zeros_and_ones_sorts_everything() -> None:
    """Knuth's 0-1 principle: what sorts all of these sorts anything."""
    for n in range(1, 13):
        rows = np.array(list(itertools.product([0, 1], repeat=n)), np.float32).T.copy()
        for low, high, _ in network(n, 0, n):
            rows[low], rows[high] = np.minimum(rows[low], rows[high]), np.maximum(rows[low], rows[high])
        assert (np.diff(rows, axis=0) >= 0).all()


def test_a_network_computes_nothing_for_ranks_that_nobody_wants() -> None:
    assert len(network(8, 0, 8)) == 19
    assert len(network(8, 3, 5)) < 19
    assert len(network(64, 0, 1)) < len(network(64, 0, 64)) / 8
    assert len(network(1, 0, 1)) == 0


@pytest.mark.parametrize("n", range(1, 71))
def test_the_median_has_the_bits_of_its_definition(n: int) -> None:
    out = np.empty(700, np.float32)
    median(values(n), [1.0] * n, out)
    assert np.array_equal(out, rounded(np.median(values(n).astype(np.float64), axis=0)))


@pytest.mark.parametrize("n", range(1, 71))
def test_the_trimmed_mean_has_the_bits_of_its_definition(n: int) -> None:
    for f in {0, 1, n // 3, (n - 1) // 2}:
        if n > 2 * f:
            out = np.empty(700, np.float32)
            TrimmedMean(f)(values(n), [1.0] * n, out)
            assert np.array_equal(out, literal_trimmed(values(n), f)), f


@pytest.mark.parametrize("n", range(1, 71, 3))
def test_the_mean_of_the_nearest_has_the_bits_of_its_definition(n: int) -> None:
    known = values(n)[:, :240]  # after these are columns with distances that float64 cannot tell from each other
    for f in {0, n // 6, (n - 1) // 2}:
        out = np.empty(240, np.float32)
        NearestMean(2 * f)(known.copy(), [1.0] * n, out)
        assert np.array_equal(out, literal_nearest(known, 2 * f)), f


# --- whole updates ----------------------------------------------------------------------------------------------------


def drawn_without(seed: int, *groups: str) -> Arrays:
    return {name: array for name, array in drawn(seed, SHAPES).items() if name.partition("/")[0] not in groups}


def combined(
    folder: Path, reference: Arrays, updates: Sequence[Arrays], settings: Mapping[str, object], patients: float = 1
) -> Combined:
    adding = combiner(reference, AggregationSection.model_validate(settings))
    for number, arrays in enumerate(updates):
        adding.add(counted(folder, f"site-{number:02d}", arrays, patients + number))
    return adding.result()


def literal(name: str, updates: Sequence[Arrays], combine: str, f: int = 1) -> F32:
    values_NM = np.stack([arrays[name].reshape(-1) for arrays in updates])
    if combine == "median":
        return rounded(np.median(values_NM.astype(np.float64), axis=0))
    return literal_trimmed(values_NM, f)


@BOTH
@pytest.mark.parametrize("n", [3, 4, 5, 8, 33])
def test_updates_become_what_the_definition_says(tmp_path: Path, combine: str, n: int) -> None:
    updates = [drawn(seed, SHAPES) for seed in range(n)]
    result = combined(tmp_path, drawn(99, SHAPES), updates, {"combine": combine})
    for name, shape in SHAPES.items():
        assert result.arrays[name].shape == shape
        assert result.arrays[name].dtype == np.float32
        assert np.array_equal(result.arrays[name].reshape(-1), literal(name, updates, combine))
    assert result.patients == dict.fromkeys(("image", "clinical", "norm"), n * (n + 1) / 2)
    assert (result.chosen, result.too_few) == (None, {})


@BOTH
def test_a_group_is_combined_over_those_that_sent_it(tmp_path: Path, combine: str) -> None:
    updates = [drawn_without(0, "clinical"), *[drawn(seed, SHAPES) for seed in (1, 2, 3)], drawn_without(4, "norm")]
    result = combined(tmp_path, drawn(99, SHAPES), updates, {"combine": combine})
    for name in SHAPES:
        senders = [arrays for arrays in updates if name in arrays]
        assert np.array_equal(result.arrays[name].reshape(-1), literal(name, senders, combine)), name
    assert result.patients == {"image": 15.0, "clinical": 14.0, "norm": 10.0}


def test_a_group_that_too_few_sent_stays_as_it_was_and_that_is_said(tmp_path: Path) -> None:
    reference = drawn(99, SHAPES)
    updates = [drawn(seed, SHAPES) for seed in (1, 2)] + [drawn_without(seed, "clinical", "norm") for seed in (3, 4)]
    result = combined(tmp_path, reference, updates, {"combine": "trimmed-mean"})
    assert np.array_equal(result.arrays["image/w"].reshape(-1), literal("image/w", updates, "trimmed-mean"))
    assert all(np.array_equal(result.arrays[name], reference[name]) for name in ("clinical/w", "norm/s"))
    assert result.patients == {"image": 10.0}
    assert result.too_few == {"clinical": 2, "norm": 2}


@BOTH
def test_whatever_comes_first_and_however_many_threads_there_are_the_bits_are_the_same(
    tmp_path: Path, combine: str
) -> None:
    reference, updates = drawn(99, SHAPES), [counted(tmp_path, name, drawn(ord(name), SHAPES), 3) for name in "ABCDE"]
    reduce = median if combine == "median" else TrimmedMean(1)
    hashes = set()
    for threads, order in itertools.product((1, 2, 5), itertools.islice(itertools.permutations(updates), 0, 120, 17)):
        adding = Blockwise(reference, pickle.loads(pickle.dumps(reduce)), passes=LocalPasses(reference, threads))  # noqa: S301
        for update in order:
            adding.add(update)
        hashes.add(hash_arrays(adding.result().arrays))
    assert len(hashes) == 1


@BOTH
def test_late_shortened_and_encoded_updates_count_as_what_they_stand_for(tmp_path: Path, combine: str) -> None:
    """Half precision, changes, a change against an older model, and one that is shortened."""
    reference, base = drawn(98, SHAPES), drawn(97, SHAPES)
    plain, half, change, late, long = (drawn(seed, SHAPES) for seed in range(5))
    halves = {name: array.astype(np.float16) for name, array in half.items()}
    everywhere = dict.fromkeys(("image", "clinical", "norm"), 5.0)
    reduce = median if combine == "median" else TrimmedMean(1)
    adding = Blockwise(reference, reduce)
    adding.add(counted(tmp_path, "A", plain, everywhere))
    adding.add(counted(tmp_path, "B", halves, everywhere))
    adding.add(Counted("C", stored(tmp_path, "C", change, {CHANGES: "true"}), everywhere))
    adding.add(counted(tmp_path, "D", late, everywhere, base=base))
    adding.add(counted(tmp_path, "E", long, everywhere, shrink=0.25))
    meant: list[Arrays] = [
        plain,
        {name: array.astype(np.float32) for name, array in halves.items()},
        {name: reference[name] + change[name] for name in SHAPES},
        {name: reference[name] + (late[name] - base[name]) for name in SHAPES},
        {name: reference[name] + (long[name] - reference[name]) * np.float32(0.25) for name in SHAPES},
    ]
    result = adding.result().arrays
    for name in SHAPES:
        assert np.array_equal(result[name].reshape(-1), literal(name, meant, combine)), name


def test_who_averages_does_without_numba() -> None:
    code = "import sys, fedpath.server.rounds; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- Flower -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 4, 8, 21])
def test_the_median_has_the_bits_of_flowers(tmp_path: Path, n: int) -> None:
    updates = [drawn_without(seed, "norm") for seed in range(n)]
    theirs = aggregate(flower.FedMedian(), updates)
    ours = combined(tmp_path, drawn_without(99, "norm"), updates, {"combine": "median"}).arrays
    assert hash_arrays(ours) == hash_arrays({name: array.astype(np.float32) for name, array in theirs.items()})


@pytest.mark.parametrize(("n", "f"), [(4, 1), (8, 1), (21, 5)])
def test_the_trimmed_mean_is_flowers_but_for_its_rounding(tmp_path: Path, n: int, f: int) -> None:
    """Flower adds in float32: each of the additions may be off by half a last place."""
    updates = [drawn_without(seed, "norm") for seed in range(n)]
    theirs = aggregate(flower.FedTrimmedAvg(beta=(f + 0.5) / n), updates)
    ours = combined(tmp_path, drawn_without(99, "norm"), updates, {"combine": "trimmed-mean", "byzantine": f}).arrays
    for name, array in theirs.items():
        largest = np.max([np.abs(update[name]) for update in updates], axis=0)
        assert (np.abs(ours[name] - array) <= n * largest * 2.0**-24).all(), name
