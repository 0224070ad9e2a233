"""The mean against its literal definition."""

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from stored_updates import counted, drawn, stored

from fedpath.core.config.federated import AggregationSection
from fedpath.core.errors import RefusedError
from fedpath.core.exchange.groups import CONTROL
from fedpath.core.exchange.stored import BLOCK, CHANGES
from fedpath.core.exchange.wire import Arrays, hash_arrays
from fedpath.server.aggregation import Combined, Counted, combiner
from fedpath.server.aggregation import mean as mean_module
from fedpath.server.aggregation.blocks import LocalPasses
from fedpath.server.aggregation.blockwise import Blockwise
from fedpath.server.aggregation.mean import mean

Site = tuple[Arrays, Mapping[str, float]]
SHAPES = {"image/w": (5, 7), "image/b": (7,), "clinical/w": (3,), "norm/s": (), "image/long": (2 * BLOCK + 3,)}
ORDERS = pytest.mark.parametrize("order", ["sites", "arrival"])


def model(seed: int) -> Arrays:
    return drawn(seed, SHAPES)


def site(seed: int, **patients: float) -> Site:
    return {name: array for name, array in model(seed).items() if name.partition("/")[0] in patients}, patients


def literal_mean(reference: Arrays, sites: Sequence[Site]) -> dict[str, NDArray[np.float64]]:
    """Σ n·w / Σ n, in float64."""
    result = {}
    for name, start in reference.items():
        group = name.partition("/")[0]
        senders = [(arrays[name].astype(np.float64), patients[group]) for arrays, patients in sites if name in arrays]
        result[name] = start.astype(np.float64)
        if senders:
            top = sum(array * count for array, count in senders)
            result[name] = top / sum(count for _, count in senders)
    return result


def combine(folder: Path, reference: Arrays, sites: Sequence[Site], order: str = "sites") -> Combined:
    settings = AggregationSection(order=order)  # type: ignore[arg-type]
    adding = combiner(reference, settings)
    for name, (arrays, patients) in zip("ABCDEFGH", sites, strict=False):
        adding.add(counted(folder, name, arrays, patients))
    return adding.result()


def assert_is_mean(folder: Path, reference: Arrays, sites: Sequence[Site], order: str) -> None:
    result = combine(folder, reference, sites, order).arrays
    assert result.keys() == reference.keys()
    for name, expected in literal_mean(reference, sites).items():
        assert isinstance(result[name], np.ndarray)
        assert result[name].dtype == np.float32
        assert result[name].shape == reference[name].shape
        np.testing.assert_allclose(result[name], expected, rtol=1e-5, atol=1e-6)


@ORDERS
def test_the_mean_is_weighted_by_patients(tmp_path: Path, order: str) -> None:
    sites = [site(n, image=n, clinical=n, norm=n) for n in (3, 40, 17)]
    assert_is_mean(tmp_path, model(1), sites, order)
    assert combine(tmp_path, model(1), sites, order).patients == {"image": 60, "clinical": 60, "norm": 60}


@ORDERS
def test_each_group_is_the_mean_of_those_that_trained_it_by_their_own_counts(tmp_path: Path, order: str) -> None:
    sites = [site(1, image=30, norm=30), site(2, image=5, clinical=2, norm=5), site(3, clinical=9)]
    assert_is_mean(tmp_path, model(4), sites, order)
    assert combine(tmp_path, model(4), sites, order).patients == {"image": 35, "norm": 35, "clinical": 11}


@ORDERS
def test_a_group_that_nobody_trained_keeps_the_global_values(tmp_path: Path, order: str) -> None:
    reference = model(3)
    combined = combine(tmp_path, reference, [site(1, image=4), site(2, image=6)], order)
    for name in ("clinical/w", "norm/s"):
        assert np.array_equal(combined.arrays[name], reference[name])
    assert combined.patients == {"image": 10}


@ORDERS
def test_no_update_leaves_the_model(tmp_path: Path, order: str) -> None:
    combined = combine(tmp_path, model(4), [], order)
    assert hash_arrays(combined.arrays) == hash_arrays(model(4))
    assert combined.patients == {}


@ORDERS
def test_one_site_gives_its_own_model(tmp_path: Path, order: str) -> None:
    arrays, patients = site(5, image=1, clinical=1, norm=1)
    assert hash_arrays(combine(tmp_path, model(6), [(arrays, patients)], order).arrays) == hash_arrays(arrays)


def test_whatever_comes_first_and_however_many_threads_there_are_the_bits_are_the_same(tmp_path: Path) -> None:
    reference = model(7)
    updates = [
        counted(tmp_path, name, *site(n, image=n, norm=2 * n))
        for name, n in zip("ABCDE", (3, 11, 29, 31, 47), strict=True)
    ]
    hashes = set()
    for threads, order in itertools.product((1, 2, 5), itertools.islice(itertools.permutations(updates), 0, 120, 17)):
        adding = Blockwise(reference, mean, together=threads == 2, passes=LocalPasses(reference, threads))
        for update in order:
            adding.add(update)
        hashes.add(hash_arrays(adding.result().arrays))
    assert len(hashes) == 1


@ORDERS
def test_what_came_in_is_left_as_it_was(tmp_path: Path, order: str) -> None:
    reference, sites = model(8), [site(9, image=1, clinical=1, norm=1), site(10, image=1)]
    combine(tmp_path, reference, sites, order)
    assert hash_arrays(reference) == hash_arrays(model(8))
    assert hash_arrays({name: stored(tmp_path, "X", sites[0][0]).array(name) for name in SHAPES}) == hash_arrays(
        sites[0][0]
    )


@ORDERS
@pytest.mark.parametrize("count", [10**6, 10**9])
def test_large_counts_lose_no_more_than_a_float_can_hold(tmp_path: Path, count: int, order: str) -> None:
    assert_is_mean(tmp_path, model(1), [site(2, image=count), site(3, image=count - 1), site(4, image=1)], order)


@ORDERS
def test_half_precision_is_summed_in_float32(tmp_path: Path, order: str) -> None:
    """1 + 2⁻¹² has no float16; the mean of 1 and 1 + 2⁻¹⁰ is 1 + 2⁻¹¹, which has none either."""
    reference = {"image/w": np.zeros(3, np.float32)}
    halves = [{"image/w": np.full(3, value, np.float16)} for value in (1.0, 1.0 + 2**-10)]
    sites = [(half, {"image": 1.0}) for half in halves]
    assert (combine(tmp_path, reference, sites, order).arrays["image/w"] == np.float32(1 + 2**-11)).all()


def test_every_half_has_its_float32_in_small_files_and_in_large_ones(tmp_path: Path) -> None:
    """All 2¹⁶ of them but NaN and infinity, in a file that is mapped and in one that is read."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    for times in (1, 40):
        arrays = {"image/w": np.tile(halves, times)}
        reference = {"image/w": np.zeros(len(halves) * times, np.float32)}
        result = combine(tmp_path, reference, [(arrays, {"image": 1.0})]).arrays["image/w"]
        assert np.array_equal(result, np.tile(halves, times).astype(np.float32))


@ORDERS
def test_changes_count_on_top_of_the_model(tmp_path: Path, order: str) -> None:
    reference = model(11)
    changes = [site(n, image=n, clinical=n, norm=n) for n in (2, 5)]
    adding = combiner(reference, AggregationSection(order=order))  # type: ignore[arg-type]
    for name, (arrays, patients) in zip("AB", changes, strict=True):
        adding.add(Counted(name, stored(tmp_path, name, arrays, {CHANGES: "true"}), patients))
    literal = literal_mean(reference, [({name: reference[name] + a for name, a in c.items()}, p) for c, p in changes])
    for name, array in adding.result().arrays.items():
        np.testing.assert_allclose(array, literal[name], rtol=1e-5, atol=1e-6)


@ORDERS
def test_a_late_update_counts_as_a_change_of_the_model_it_started_from(tmp_path: Path, order: str) -> None:
    reference, base = model(12), model(13)
    (fresh, n_fresh), (late, n_late) = site(14, image=3), site(15, image=2)
    adding = combiner(reference, AggregationSection(order=order))  # type: ignore[arg-type]
    adding.add(counted(tmp_path, "A", fresh, n_fresh))
    adding.add(counted(tmp_path, "B", late, n_late, base=base))
    moved = {name: reference[name].astype(np.float64) + late[name] - base[name] for name in late}
    result = adding.result().arrays
    for name, expected in literal_mean(reference, [(fresh, n_fresh), (moved, n_late)]).items():
        np.testing.assert_allclose(result[name], expected, rtol=1e-5, atol=2e-6)


@ORDERS
def test_control_variates_are_no_weights(tmp_path: Path, order: str) -> None:
    arrays, patients = site(16, image=3)
    with_control = arrays | {CONTROL + name: array for name, array in arrays.items()}
    assert hash_arrays(combine(tmp_path, model(17), [(with_control, patients)], order).arrays) == hash_arrays(
        combine(tmp_path, model(17), [(arrays, patients)], order).arrays
    )


def test_a_change_that_is_too_long_is_shortened(tmp_path: Path) -> None:
    reference = {"image/w": np.zeros(2, np.float32), "image/v": np.ones(1, np.float32)}
    long = {"image/w": np.array([3, 4], np.float32), "image/v": np.array([13], np.float32)}  # its change has norm 13
    short = {"image/w": np.array([0, 1], np.float32), "image/v": np.array([1], np.float32)}
    adding = combiner(reference, AggregationSection(clip_norm=6.5))
    adding.add(counted(tmp_path, "A", long, 1))
    adding.add(counted(tmp_path, "B", short, 1))
    result = adding.result().arrays
    np.testing.assert_allclose(result["image/w"], [0.75, 1.5], rtol=1e-6)
    np.testing.assert_allclose(result["image/v"], [4.0], rtol=1e-6)


LARGE = {"image/w": (3, 200_000), "image/long": (5 * BLOCK + 3,)}
"""Of files that are read and not mapped."""


def large(folder: Path, sites: Sequence[int]) -> list[Counted]:
    return [counted(folder, f"site-{n:02d}", drawn(n, LARGE), n) for n in sites]


@pytest.mark.parametrize("sites", [[7], [3, 5, 6, 11, 29, 31, 47]])
def test_numbers_that_are_added_as_they_are_read_have_the_bits_of_those_added_one_array_after_the_other(
    tmp_path: Path, sites: list[int]
) -> None:
    reference, updates = drawn(1, LARGE), large(tmp_path, sites)
    adding = combiner(reference, AggregationSection())
    for update in updates:
        adding.add(update)
    result = adding.result().arrays
    for name, array in result.items():
        literal = np.empty_like(array).reshape(-1)
        mean([update.arrays.array(name).reshape(-1) for update in updates], sites, literal)
        assert hash_arrays({name: array.reshape(-1)}) == hash_arrays({name: literal})


def test_without_a_compiler_the_bits_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, updates = drawn(1, LARGE), large(tmp_path, [3, 4, 5])
    hashes = set()
    for there in (True, False):
        monkeypatch.setattr(mean_module, "_COMPILES", there)
        adding = combiner(reference, AggregationSection())
        for update in updates:
            adding.add(update)
        hashes.add(hash_arrays(adding.result().arrays))
    assert len(hashes) == 1


def test_changes_and_halves_among_large_updates_are_not_added_as_they_lie(tmp_path: Path) -> None:
    reference = drawn(1, LARGE)
    change, half, plain = (drawn(n, LARGE) for n in (2, 3, 4))
    adding = combiner(reference, AggregationSection())
    adding.add(Counted("A", stored(tmp_path, "A", change, {CHANGES: "true"}), {"image": 1.0}))
    halves = {name: array.astype(np.float16) for name, array in half.items()}
    adding.add(counted(tmp_path, "B", halves, 2))  # type: ignore[arg-type]
    adding.add(counted(tmp_path, "C", plain, 3))
    for name, array in adding.result().arrays.items():
        expected = ((reference[name] + change[name]) + 2.0 * halves[name].astype(np.float32) + 3.0 * plain[name]) / 6
        np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-5)


def test_a_large_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    updates = large(tmp_path, [3, 4])
    adding = combiner(drawn(1, LARGE), AggregationSection())
    for update in updates:
        adding.add(update)
    path = updates[1].arrays.path
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(RefusedError, match="cut while it was read"):
        adding.result()
