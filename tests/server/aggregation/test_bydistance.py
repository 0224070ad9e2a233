"""Krum, Multi-Krum, Bulyan and the geometric median against literal definitions in float64, and against Flower's."""

import itertools
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import flwr.serverapp.strategy as flower
import numpy as np
import pytest
from flower_replies import aggregate
from flwr.app import RecordDict
from flwr.serverapp.strategy.multikrum import select_multikrum
from numpy.typing import NDArray
from stored_updates import counted, drawn, stored

from fedpath.core.config.federated import AggregationSection
from fedpath.core.exchange.stored import BLOCK, CHANGES
from fedpath.core.exchange.wire import Arrays, hash_arrays
from fedpath.server.aggregation import Combined, Counted, combiner
from fedpath.server.aggregation.blocks import LocalPasses, Part
from fedpath.server.aggregation.bydistance import ByDistance
from fedpath.server.aggregation.distances import BulyanSelection, Krum, geometric_median
from fedpath.server.aggregation.mean import mean
from fedpath.server.aggregation.order import NearestMean

F64 = NDArray[np.float64]
SHAPES = {"image/w": (5, 7), "image/long": (BLOCK + 3,), "clinical/w": (3,), "clinical/b": (2, 2)}
SMALL = {"image/w": (5, 7), "image/b": (9,), "clinical/w": (3,)}
CHOOSING = pytest.mark.parametrize("combine", ["krum", "multi-krum", "bulyan"])


# --- literal definitions: whole vectors, float64, one loop after the other --------------------------------------------


def vector(arrays: Arrays, names: Sequence[str]) -> F64:
    return np.concatenate([arrays[name].reshape(-1).astype(np.float64) for name in names])


def literal_krum(vectors: Sequence[F64], f: int) -> list[int]:
    """Places by score: Blanchard et al., 2017, section 4."""
    scores = []
    for i, mine in enumerate(vectors):
        squares = sorted(float(((mine - other) ** 2).sum()) for j, other in enumerate(vectors) if j != i)
        scores.append(sum(squares[: max(1, len(vectors) - f - 2)]))
    return sorted(range(len(vectors)), key=lambda place: (scores[place], place))


def literal_multi_krum(vectors: Sequence[F64], f: int, keep: int | None = None) -> tuple[F64, list[int]]:
    chosen = literal_krum(vectors, f)[: keep or len(vectors) - f]
    return np.mean([vectors[place] for place in chosen], axis=0), sorted(chosen)


def literal_bulyan(vectors: Sequence[F64], f: int) -> tuple[F64, list[int]]:
    """El Mhamdi et al., 2018, section 4: θ times the Krum of those that are left, then the β nearest to the median."""
    left, theta = list(range(len(vectors))), len(vectors) - 2 * f
    selected: list[int] = []
    while len(selected) < theta:
        selected.append(left.pop(literal_krum([vectors[place] for place in left], f)[0]))
    result = []
    for column in np.sort([vectors[place] for place in selected], axis=0).T:
        nearest = np.argsort(np.abs(column - np.median(column)), kind="stable")[: theta - 2 * f]
        result.append(column[nearest].mean())
    return np.array(result), sorted(selected)


def literal_geometric_median(vectors: Sequence[F64], weights: Sequence[float]) -> F64:
    """Weiszfeld's steps on the vectors themselves."""
    alpha = np.array(weights) / sum(weights)
    stack = np.stack(vectors)
    point = alpha @ stack
    smoothing = 1e-6 * float(alpha @ np.linalg.norm(stack - point, axis=1))
    for _ in range(10_000 if smoothing else 0):
        pull = alpha / np.maximum(smoothing, np.linalg.norm(stack - point, axis=1))
        before, point = point, pull @ stack / pull.sum()
        if np.abs(before - point).max() < 1e-12:
            break
    return point


# --- whole updates ----------------------------------------------------------------------------------------------------


def updates_near(n: int, shapes: Mapping[str, tuple[int, ...]], liars: int = 0) -> list[Arrays]:
    """Updates around a common point; the first ``liars`` far from it."""
    middle = drawn(1000, shapes)
    moved = [drawn(seed, shapes) for seed in range(n)]
    return [
        {name: middle[name] + moved[i][name] * np.float32(40 if i < liars else 0.3 + 0.02 * i) for name in shapes}
        for i in range(n)
    ]


def combined(
    folder: Path, reference: Arrays, updates: Sequence[Arrays], patients: Sequence[float] = (), **settings: object
) -> Combined:
    adding = combiner(reference, AggregationSection.model_validate(settings))
    for number, arrays in enumerate(updates):
        adding.add(counted(folder, f"site-{number:02d}", arrays, patients[number] if patients else 1.0))
    return adding.result()


def names_of(places: Sequence[int]) -> list[str]:
    return [f"site-{place:02d}" for place in places]


def flat(arrays: Arrays, names: Sequence[str]) -> F64:
    return vector({name: arrays[name] for name in names}, names)


@pytest.mark.parametrize(("n", "f"), [(3, 0), (5, 1), (8, 1), (9, 3), (40, 10)])
@pytest.mark.parametrize("keep", [1, 2, None])
def test_krum_and_multi_krum_choose_by_the_definition(tmp_path: Path, n: int, f: int, keep: int | None) -> None:
    updates, names = updates_near(n, SMALL, f), sorted(SMALL)
    vectors = [vector(arrays, names) for arrays in updates]
    settings = {"combine": "krum"} if keep == 1 else {"combine": "multi-krum", "keep": keep}
    result = combined(tmp_path, drawn(99, SMALL), updates, [float(100 - i) for i in range(n)], byzantine=f, **settings)
    expected, chosen = literal_multi_krum(vectors, f, keep)
    assert result.chosen == {"clinical": names_of(chosen), "image": names_of(chosen)}
    assert result.patients == dict.fromkeys(("clinical", "image"), sum(100.0 - place for place in chosen))
    np.testing.assert_allclose(flat(result.arrays, names), expected, rtol=0, atol=n * 2.0**-24 * np.abs(expected).max())
    if keep == 1:
        assert np.array_equal(result.arrays["image/w"], updates[chosen[0]]["image/w"])  # to the bit


@pytest.mark.parametrize(("n", "f"), [(3, 0), (7, 1), (8, 1), (12, 2), (40, 9)])
def test_bulyan_is_its_definition(tmp_path: Path, n: int, f: int) -> None:
    updates, names = updates_near(n, SMALL, f), sorted(SMALL)
    result = combined(tmp_path, drawn(99, SMALL), updates, combine="bulyan", byzantine=f)
    expected, chosen = literal_bulyan([vector(arrays, names) for arrays in updates], f)
    assert result.chosen == {"clinical": names_of(chosen), "image": names_of(chosen)}
    np.testing.assert_allclose(flat(result.arrays, names), expected, rtol=2.0**-23, atol=0)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 31])
def test_the_geometric_median_is_its_definition(tmp_path: Path, n: int) -> None:
    updates, names = updates_near(n, SMALL, n // 4), sorted(SMALL)
    patients = [float(3 + 5 * i % 17) for i in range(n)]
    result = combined(tmp_path, drawn(99, SMALL), updates, patients, combine="geometric-median")
    vectors = [vector(arrays, names) for arrays in updates]
    literal = literal_geometric_median(vectors, patients)
    spread = max(float(np.linalg.norm(one - literal)) for one in vectors)
    assert np.linalg.norm(flat(result.arrays, names) - literal) <= 1e-5 * max(spread, 1.0)
    assert (result.chosen, result.patients["image"]) == (None, sum(patients))


def test_the_geometric_median_is_where_more_than_half_the_weight_is(tmp_path: Path) -> None:
    updates = updates_near(4, SMALL)
    result = combined(tmp_path, drawn(99, SMALL), updates, [1.0, 1.0, 1.0, 4.0], combine="geometric-median")
    np.testing.assert_allclose(flat(result.arrays, sorted(SMALL)), vector(updates[3], sorted(SMALL)), atol=1e-4)


@pytest.mark.parametrize("combine_", ["krum", "multi-krum", "bulyan", "geometric-median"])
def test_updates_that_are_all_the_same_become_that(tmp_path: Path, combine_: str) -> None:
    same = drawn(3, SMALL)
    result = combined(tmp_path, drawn(99, SMALL), [same] * 7, combine=combine_)
    np.testing.assert_allclose(flat(result.arrays, sorted(SMALL)), vector(same, sorted(SMALL)), rtol=1e-6)


def test_of_equal_scores_the_first_name_is_chosen(tmp_path: Path) -> None:
    corners = [{"image/w": np.array(corner, np.float32)} for corner in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    result = combined(tmp_path, {"image/w": np.zeros(2, np.float32)}, corners, combine="krum", byzantine=0)
    assert result.chosen == {"image": ["site-00"]}


# --- distances --------------------------------------------------------------------------------------------------------


def squared_distances(folder: Path, reference: Arrays, updates: Sequence[Arrays], threads: int = 2) -> F64:
    (name,) = reference
    held = [counted(folder, f"site-{number:02d}", arrays, 1.0) for number, arrays in enumerate(updates)]
    (squared_NN,) = LocalPasses(reference, threads).squared_distances([Part(name, held, [1.0] * len(held), True)])
    return squared_NN


@pytest.mark.parametrize("scale", [1e-35, 1e-20, 1.0, 1e18, 1e37])
def test_distances_are_those_of_float64_whatever_the_size_of_the_numbers(tmp_path: Path, scale: float) -> None:
    updates = [{"image/w": drawn(seed, {"a": (BLOCK + 17,)})["a"] * np.float32(scale)} for seed in range(5)]
    exact = [[((a["image/w"].astype(float) - b["image/w"]) ** 2).sum() for b in updates] for a in updates]
    measured = squared_distances(tmp_path, {"image/w": np.zeros(BLOCK + 17, np.float32)}, updates)
    np.testing.assert_allclose(measured, exact, rtol=1e-6)
    assert (np.diag(measured) == 0).all()


def test_what_all_updates_have_in_common_costs_no_digits(tmp_path: Path) -> None:
    """Weights near 1000, updates that differ by a millionth: in float32, differences of norms would be noise."""
    spread = [0.001, 0.001, 0.002, 0.004, 0.008]
    moved = [drawn(seed, {"image/w": (5000,)})["image/w"] * np.float32(by) for seed, by in enumerate(spread)]
    updates = [{"image/w": np.float32(1000) + change} for change in moved]
    vectors = [arrays["image/w"].astype(np.float64) for arrays in updates]
    exact = [[float(((a - b) ** 2).sum()) for b in vectors] for a in vectors]
    measured = squared_distances(tmp_path, {"image/w": np.full(5000, 1000, np.float32)}, updates)
    np.testing.assert_allclose(measured, exact, rtol=1e-6)


def test_the_bits_do_not_depend_on_threads(tmp_path: Path) -> None:
    reference = {"image/w": np.zeros(5 * BLOCK + 5, np.float32)}
    updates = [drawn(seed, {"image/w": (5 * BLOCK + 5,)}) for seed in range(4)]
    first, *others = (squared_distances(tmp_path, reference, updates, threads) for threads in (1, 2, 3, 7))
    assert all(np.array_equal(first, other) for other in others)


# --- groups, orders, kinds of updates ---------------------------------------------------------------------------------


def without(arrays: Arrays, group: str) -> Arrays:
    return {name: array for name, array in arrays.items() if not name.startswith(group)}


def test_groups_that_the_same_hospitals_sent_are_one_vector(tmp_path: Path) -> None:
    """Who lies in the image group looks good in the clinical one: where all hospitals sent both, it is out in both."""
    updates = updates_near(5, SMALL)
    updates[2] = updates[2] | {"image/w": updates[2]["image/w"] + np.float32(50)}
    result = combined(tmp_path, drawn(99, SMALL), updates, combine="multi-krum")
    assert result.chosen is not None
    assert "site-02" not in result.chosen["image"]
    assert result.chosen["image"] == result.chosen["clinical"]


@pytest.mark.parametrize("combine_", ["krum", "multi-krum", "bulyan", "geometric-median"])
def test_where_hospitals_miss_a_group_each_vector_is_combined_over_those_that_sent_it(
    tmp_path: Path, combine_: str
) -> None:
    updates = updates_near(10, SMALL, 1)
    updates[3], updates[5] = without(updates[3], "clinical"), without(updates[5], "clinical")
    result = combined(tmp_path, drawn(99, SMALL), updates, combine=combine_)
    for group, names in (("image", ["image/b", "image/w"]), ("clinical", ["clinical/w"])):
        senders = [place for place, arrays in enumerate(updates) if names[0] in arrays]
        vectors = [vector(updates[place], names) for place in senders]
        if combine_ == "geometric-median":
            expected, chosen = literal_geometric_median(vectors, [1.0] * len(vectors)), list(range(len(vectors)))
        elif combine_ == "bulyan":
            expected, chosen = literal_bulyan(vectors, 1)
        else:
            expected, chosen = literal_multi_krum(vectors, 1, 1 if combine_ == "krum" else None)
        np.testing.assert_allclose(flat(result.arrays, names), expected, rtol=0, atol=1e-5)
        assert result.patients[group] == len(chosen)
        if result.chosen is not None:
            assert result.chosen[group] == names_of([senders[place] for place in chosen])


@CHOOSING
def test_a_group_that_too_few_sent_stays_as_it_was_and_that_is_said(tmp_path: Path, combine: str) -> None:
    reference, updates = drawn(99, SMALL), updates_near(8, SMALL)
    updates[4:] = [without(arrays, "clinical") for arrays in updates[4:]]
    result = combined(tmp_path, reference, updates, combine=combine)
    assert np.array_equal(result.arrays["clinical/w"], reference["clinical/w"])
    assert not np.array_equal(result.arrays["image/w"], reference["image/w"])
    assert result.too_few == {"clinical": 4}
    assert result.patients.keys() == {"image"}
    assert result.chosen is not None
    assert result.chosen.keys() == {"image"}


def test_the_geometric_median_weighs_each_group_by_the_patients_that_trained_it(tmp_path: Path) -> None:
    updates = updates_near(4, SMALL)
    adding = combiner(drawn(99, SMALL), AggregationSection(combine="geometric-median"))
    patients = [{"image": 10.0 + i, "clinical": 20.0 - 5 * i} for i in range(4)]
    for i, arrays in enumerate(updates):
        adding.add(counted(tmp_path, f"site-{i}", arrays, patients[i]))
    result = adding.result()
    for group, names in (("image", ["image/b", "image/w"]), ("clinical", ["clinical/w"])):
        vectors = [vector(arrays, names) for arrays in updates]
        expected = literal_geometric_median(vectors, [of_site[group] for of_site in patients])
        np.testing.assert_allclose(flat(result.arrays, names), expected, rtol=0, atol=1e-5)


def test_no_update_leaves_the_model(tmp_path: Path) -> None:
    result = combined(tmp_path, drawn(99, SMALL), [], combine="geometric-median")
    assert hash_arrays(result.arrays) == hash_arrays(drawn(99, SMALL))
    assert result.patients == {}


KINDS = {
    "krum": (Krum(1), mean, False),
    "multi-krum": (Krum(1, None), mean, False),
    "bulyan": (BulyanSelection(1), NearestMean(2), True),
    "geometric-median": (geometric_median, mean, False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_comes_first_and_however_many_threads_there_are_the_bits_are_the_same(
    tmp_path: Path, kind: str
) -> None:
    weigh, reduce, together = pickle.loads(pickle.dumps(KINDS[kind]))  # noqa: S301
    reference = drawn(99, SHAPES)
    updates = [counted(tmp_path, f"site-{i}", arrays, 2.0 + i) for i, arrays in enumerate(updates_near(7, SHAPES))]
    hashes = set()
    for threads, order in itertools.product((1, 2, 5), itertools.islice(itertools.permutations(updates), 0, 5040, 900)):
        adding = ByDistance(
            reference,
            weigh,
            reduce,
            together=together,
            chooses=kind != "geometric-median",
            passes=LocalPasses(reference, threads),
        )
        for update in order:
            adding.add(update)
        hashes.add(hash_arrays(adding.result().arrays))
    assert len(hashes) == 1


@pytest.mark.parametrize("combine_", ["krum", "multi-krum", "bulyan", "geometric-median"])
def test_late_shortened_and_encoded_updates_count_as_what_they_stand_for(tmp_path: Path, combine_: str) -> None:
    """The same result as from plain updates that say the same."""
    reference, base = drawn(98, SMALL), drawn(97, SMALL)
    sent = updates_near(8, SMALL, 1)
    halves = {name: array.astype(np.float16) for name, array in sent[1].items()}
    everywhere = {"image": 1.0, "clinical": 1.0}
    special = {
        1: counted(tmp_path, "site-01", halves, everywhere),
        2: Counted("site-02", stored(tmp_path, "site-02", sent[2], {CHANGES: "true"}), everywhere),
        3: counted(tmp_path, "site-03", sent[3], everywhere, base=base),
        4: counted(tmp_path, "site-04", sent[4], everywhere, shrink=0.25),
    }
    meant = list(sent)
    meant[1] = {name: array.astype(np.float32) for name, array in halves.items()}
    meant[2] = {name: reference[name] + sent[2][name] for name in SMALL}
    meant[3] = {name: reference[name] + (sent[3][name] - base[name]) for name in SMALL}
    meant[4] = {name: reference[name] + (sent[4][name] - reference[name]) * np.float32(0.25) for name in SMALL}
    adding = combiner(reference, AggregationSection.model_validate({"combine": combine_}))
    for place, arrays in enumerate(sent):
        adding.add(special.get(place) or counted(tmp_path, f"site-{place:02d}", arrays, everywhere))
    (plain := tmp_path / "plain").mkdir()
    expected = combined(plain, reference, meant, combine=combine_)
    result = adding.result()
    assert result.chosen == expected.chosen
    assert hash_arrays(result.arrays) == hash_arrays(expected.arrays)


# --- Flower -----------------------------------------------------------------------------------------------------------


def assert_close(ours: Arrays, theirs: Mapping[str, NDArray[np.float32]], n: int) -> None:
    """Means of float32s added in another order."""
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, rtol=0, atol=n * 2.0**-24 * float(np.abs(array).max()))


@pytest.mark.parametrize(("n", "f"), [(5, 1), (8, 1), (9, 3)])
def test_krum_is_flowers(tmp_path: Path, n: int, f: int) -> None:
    updates = updates_near(n, SMALL, f)
    ours = combined(tmp_path, drawn(99, SMALL), updates, combine="krum", byzantine=f).arrays
    assert hash_arrays(ours) == hash_arrays(dict(aggregate(flower.Krum(num_malicious_nodes=f), updates)))


@pytest.mark.parametrize(("n", "f", "keep"), [(5, 1, 4), (8, 1, 7), (9, 3, 2)])
def test_multi_krum_is_flowers_where_all_hospitals_have_as_many_patients(
    tmp_path: Path, n: int, f: int, keep: int
) -> None:
    """Flower's mean of those that were chosen is weighted; the paper's, and ours, is not."""
    updates = updates_near(n, SMALL, f)
    theirs = aggregate(flower.MultiKrum(num_malicious_nodes=f, num_nodes_to_select=keep), updates, [7] * n)
    ours = combined(tmp_path, drawn(99, SMALL), updates, combine="multi-krum", byzantine=f, keep=keep)
    assert_close(ours.arrays, theirs, n)


def one_after_the_other(contents: list[RecordDict], f: int, theta: int) -> list[RecordDict]:
    """Bulyan's selection from Flower's Krum, as the paper says; Flower's own takes the best scores at once."""
    left, selected = list(contents), list[RecordDict]()
    while len(selected) < theta:
        (best,) = select_multikrum(left, f, 1)
        left = [content for content in left if content is not best]
        selected.append(best)
    return selected


@pytest.mark.parametrize(("n", "f"), [(7, 1), (8, 1), (12, 2)])
def test_bulyan_is_flowers_with_the_papers_selection(tmp_path: Path, n: int, f: int) -> None:
    updates = updates_near(n, SMALL, f)
    theirs = aggregate(flower.Bulyan(num_malicious_nodes=f, selection_rule=one_after_the_other), updates)
    ours = combined(tmp_path, drawn(99, SMALL), updates, combine="bulyan", byzantine=f)
    assert_close(ours.arrays, theirs, n)
