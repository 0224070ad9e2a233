"""Metrics against their definitions, counted out."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fedpath.core.training import auc, balanced_accuracy, bootstrap_auc, macro_f1
from fedpath.core.training.metrics import _weighted_auc


def pair_auc(positive: list[bool], scores: list[float], weights: list[float] | None = None) -> float:
    """The share of (positive, negative) pairs in the right order, ties counting half."""
    weights = weights or [1.0] * len(scores)
    won = total = 0.0
    for (p, s, v), (q, t, w) in itertools.product(zip(positive, scores, weights, strict=True), repeat=2):
        if p and not q:
            total += v * w
            won += v * w * (1.0 if s > t else 0.5 if s == t else 0.0)
    return won / total


@pytest.mark.parametrize("seed", range(5))
def test_auc_counts_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 2, 30)
    scores = rng.integers(0, 8, 30) / 8  # with ties
    expected = pair_auc([bool(t) for t in targets], scores.tolist())
    assert auc(targets, scores) == pytest.approx(expected)
    assert auc(targets, np.stack([1 - scores, scores], axis=1)) == pytest.approx(expected)


def test_auc_of_more_classes_is_the_mean_of_one_against_the_rest() -> None:
    rng = np.random.default_rng(0)
    targets, scores = rng.integers(0, 3, 40), rng.random((40, 3))
    parts = [pair_auc([bool(t == c) for t in targets], scores[:, c].tolist()) for c in range(3)]
    assert auc(targets, scores) == pytest.approx(np.mean(parts))
    # A class that does not occur has no AUC of its own and does not spoil the others.
    two = targets[targets < 2]
    parts = [pair_auc([bool(t == c) for t in two], scores[targets < 2, c].tolist()) for c in range(2)]
    assert auc(two, scores[targets < 2]) == pytest.approx(np.mean(parts))


@pytest.mark.parametrize("targets", [[1, 1, 1], [0, 0, 0], []])
def test_one_class_only_has_no_auc(targets: list[int]) -> None:
    assert auc(targets, np.arange(len(targets)) / 10) is None
    assert bootstrap_auc(targets, np.arange(len(targets)) / 10, ["p"] * len(targets), seed=0) is None


def test_balanced_accuracy_and_macro_f1_count_classes_equally() -> None:
    targets = [0, 0, 0, 0, 0, 0, 1, 1, 2]
    predicted = [0, 0, 0, 0, 0, 1, 1, 0, 1]
    assert balanced_accuracy(targets, predicted) == pytest.approx((5 / 6 + 1 / 2 + 0) / 3)
    f1 = [2 * 5 / (6 + 6), 2 * 1 / (2 + 3), 0.0]  # 2·hits / (occur + predicted)
    assert macro_f1(targets, predicted, 3) == pytest.approx(np.mean(f1))
    # Classes missing from this set: recall has no meaning for them, F1 counts 0 when they are predicted.
    assert balanced_accuracy([0, 0, 1], [0, 2, 1]) == pytest.approx((1 / 2 + 1) / 2)
    assert macro_f1([0, 0, 1], [0, 2, 1], 3) == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_weighted_auc_is_that_of_repeated_slides() -> None:
    rng = np.random.default_rng(1)
    positive, scores = rng.random(25) < 0.4, rng.integers(0, 6, 25) / 6
    weights_SB = rng.integers(0, 4, (20, 25)).astype(float)
    for got, weights in zip(_weighted_auc(positive, scores, weights_SB), weights_SB, strict=True):
        assert got == pytest.approx(roc_auc_score(positive, scores, sample_weight=weights))
        assert got == pytest.approx(pair_auc(positive.tolist(), scores.tolist(), weights.tolist()))


def test_bootstrap_equals_a_loop_over_resampled_patients() -> None:
    rng = np.random.default_rng(2)
    patients = [f"p{i}" for i in rng.integers(0, 15, 40)]
    targets = rng.integers(0, 2, 40)
    scores = targets * 0.3 + rng.random(40)
    interval = bootstrap_auc(targets, scores, patients, seed=0, samples=4000)
    assert interval is not None
    assert interval.value == pytest.approx(pair_auc([bool(t) for t in targets], scores.tolist()))

    names = sorted(set(patients))
    slides_of = {name: [i for i, patient in enumerate(patients) if patient == name] for name in names}
    resampled = []
    for _ in range(4000):
        drawn = [i for name in rng.choice(names, len(names)) for i in slides_of[name]]
        resampled.append(roc_auc_score(targets[drawn], scores[drawn]))
    assert (interval.low, interval.high) == pytest.approx(np.percentile(resampled, [2.5, 97.5]), abs=0.015)


def test_more_slides_of_the_same_patients_bring_no_certainty() -> None:
    rng = np.random.default_rng(3)
    targets = np.arange(30) % 2
    scores = targets * 0.5 + rng.random(30)
    patients = [f"p{i}" for i in range(30)]
    once = bootstrap_auc(targets, scores, patients, seed=0)
    five = bootstrap_auc(np.tile(targets, 5), np.tile(scores, 5), patients * 5, seed=0)
    assert once is not None
    assert five is not None
    assert (five.low, five.high) == pytest.approx((once.low, once.high))


def test_bootstrap_is_seeded() -> None:
    rng = np.random.default_rng(4)
    targets, scores, patients = np.arange(20) % 2, rng.random(20), [str(i) for i in range(20)]
    assert bootstrap_auc(targets, scores, patients, seed=1) == bootstrap_auc(targets, scores, patients, seed=1)
    assert bootstrap_auc(targets, scores, patients, seed=1) != bootstrap_auc(targets, scores, patients, seed=2)


def test_two_patients_still_give_an_interval() -> None:
    interval = bootstrap_auc([0, 1], [0.2, 0.9], ["a", "b"], seed=0, samples=50)
    assert interval is not None
    assert (interval.value, interval.low, interval.high) == (1.0, 1.0, 1.0)


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(ValueError, match="belong together"):
        auc([0, 1], [0.5])
    with pytest.raises(ValueError, match=r"outside 0\.\.1"):
        auc([0, 2], [0.5, 0.5])
    with pytest.raises(ValueError, match="1 patients for 2 slides"):
        bootstrap_auc([0, 1], [0.5, 0.5], ["a"], seed=0)
