"""Median and trimmed mean against their literal definitions, and against Flower's."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from fedpath.core.exchange.stored import F32
from fedpath.server.aggregation.networks import network
from fedpath.server.aggregation.order import NearestMean, TrimmedMean, median

SITES = [f"site-{number:02d}" for number in range(70)]


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
