"""The mean against its literal definition."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from fedpath.core.exchange.wire import Arrays, hash_arrays
from fedpath.server.aggregation import GroupMean

Site = tuple[Arrays, dict[str, int]]
SHAPES = {"image/w": (5, 7), "image/b": (7,), "clinical/w": (3,), "norm/s": ()}


def model(rng: np.random.Generator) -> Arrays:
    return {name: np.asarray(rng.normal(size=shape), dtype=np.float32) for name, shape in SHAPES.items()}


def site(rng: np.random.Generator, **patients: int) -> Site:
    arrays = {name: array for name, array in model(rng).items() if name.partition("/")[0] in patients}
    return arrays, patients


def literal_mean(reference: Arrays, sites: Sequence[Site]) -> dict[str, NDArray[np.float64]]:
    """Σ n·w / Σ n, number by number, in float64."""
    result = {}
    for name, start in reference.items():
        mean = np.array(start, dtype=np.float64)
        group = name.partition("/")[0]
        senders = [(arrays[name], patients[group]) for arrays, patients in sites if name in arrays]
        if senders:
            for place in np.ndindex(mean.shape):
                top = sum(float(array[place]) * count for array, count in senders)
                mean[place] = top / sum(count for _, count in senders)
        result[name] = mean
    return result


def combine(reference: Arrays, sites: Sequence[Site]) -> tuple[Arrays, dict[str, int]]:
    mean = GroupMean(reference)
    for arrays, patients in sites:
        mean.add(arrays, patients)
    return mean.result()


def assert_is_mean(reference: Arrays, sites: Sequence[Site]) -> None:
    result, _ = combine(reference, sites)
    assert result.keys() == reference.keys()
    for name, expected in literal_mean(reference, sites).items():
        assert isinstance(result[name], np.ndarray)
        assert result[name].dtype == np.float32
        assert result[name].shape == reference[name].shape
        np.testing.assert_allclose(result[name], expected, rtol=1e-5, atol=1e-6)


def test_the_mean_is_weighted_by_patients() -> None:
    rng = np.random.default_rng(1)
    sites = [site(rng, image=n, clinical=n, norm=n) for n in (3, 40, 17)]
    assert_is_mean(model(rng), sites)
    assert combine(model(rng), sites)[1] == {"image": 60, "clinical": 60, "norm": 60}


def test_each_group_is_the_mean_of_those_that_trained_it_by_their_own_counts() -> None:
    rng = np.random.default_rng(2)
    sites = [site(rng, image=30, norm=30), site(rng, image=5, clinical=2, norm=5), site(rng, clinical=9)]
    reference = model(rng)
    assert_is_mean(reference, sites)
    assert combine(reference, sites)[1] == {"image": 35, "norm": 35, "clinical": 11}


def test_a_group_that_nobody_trained_keeps_the_global_values() -> None:
    rng = np.random.default_rng(3)
    reference = model(rng)
    result, patients = combine(reference, [site(rng, image=4), site(rng, image=6)])
    for name in ("clinical/w", "norm/s"):
        assert np.array_equal(result[name], reference[name])
    assert patients == {"image": 10}
    assert not np.array_equal(result["image/w"], reference["image/w"])


def test_no_update_leaves_the_model() -> None:
    reference = model(np.random.default_rng(4))
    result, patients = combine(reference, [])
    assert hash_arrays(result) == hash_arrays(reference)
    assert patients == {}


def test_one_site_gives_its_own_model() -> None:
    rng = np.random.default_rng(5)
    arrays, patients = site(rng, image=1, clinical=1, norm=1)
    assert hash_arrays(combine(model(rng), [(arrays, patients)])[0]) == hash_arrays(arrays)
    np.testing.assert_allclose(
        combine(model(rng), [(arrays, {"image": 13, "clinical": 7, "norm": 3})])[0]["image/w"],
        arrays["image/w"],
        rtol=1e-6,
    )


def test_equal_models_stay_as_they_are() -> None:
    rng = np.random.default_rng(6)
    arrays, _ = site(rng, image=1, clinical=1, norm=1)
    many = [(arrays, dict.fromkeys(("image", "clinical", "norm"), n)) for n in (1, 50, 300, 7)]
    for name, array in combine(model(rng), many)[0].items():
        np.testing.assert_allclose(array, arrays[name], rtol=1e-6)


def test_the_same_order_gives_the_same_bits() -> None:
    rng = np.random.default_rng(7)
    reference = model(rng)
    sites = [site(rng, image=n, norm=2 * n) for n in (3, 11, 29, 31, 47)]
    assert hash_arrays(combine(reference, sites)[0]) == hash_arrays(combine(reference, sites)[0])


def test_what_came_in_is_left_as_it_was() -> None:
    rng = np.random.default_rng(8)
    reference = model(rng)
    sites = [site(rng, image=1, clinical=1, norm=1), site(rng, image=1)]
    before = [hash_arrays(arrays) for arrays in (reference, sites[0][0], sites[1][0])]
    combine(reference, sites)
    assert [hash_arrays(arrays) for arrays in (reference, sites[0][0], sites[1][0])] == before


def test_asking_twice_gives_the_same_and_more_can_be_added() -> None:
    rng = np.random.default_rng(9)
    reference, sites = model(rng), [site(rng, image=2), site(rng, image=5)]
    mean = GroupMean(reference)
    mean.add(*sites[0])
    first = hash_arrays(mean.result()[0])
    assert hash_arrays(mean.result()[0]) == first
    mean.add(*sites[1])
    assert hash_arrays(mean.result()[0]) == hash_arrays(combine(reference, sites)[0])


@pytest.mark.parametrize("count", [10**6, 10**9])
def test_large_counts_lose_no_more_than_a_float_can_hold(count: int) -> None:
    rng = np.random.default_rng(10)
    assert_is_mean(model(rng), [site(rng, image=count), site(rng, image=count - 1), site(rng, image=1)])
