"""Metrics against their definitions, counted out."""

import itertools

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from fedpath.core.training import auc, balanced_accuracy, brier_score, calibration_error, macro_f1
from fedpath.core.training.metrics import averaging, reliability


def pair_auc(positive: list[bool], scores: list[float]) -> float:
    """The share of (positive, negative) pairs in the right order, ties counting half."""
    pairs = [
        1.0 if s > t else 0.5 if s == t else 0.0
        for (p, s), (q, t) in itertools.product(zip(positive, scores, strict=True), repeat=2)
        if p and not q
    ]
    return sum(pairs) / len(pairs)


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


def test_balanced_accuracy_and_macro_f1_count_classes_equally() -> None:
    targets = [0, 0, 0, 0, 0, 0, 1, 1, 2]
    predicted = [0, 0, 0, 0, 0, 1, 1, 0, 1]
    assert balanced_accuracy(targets, predicted) == pytest.approx((5 / 6 + 1 / 2 + 0) / 3)
    f1 = [2 * 5 / (6 + 6), 2 * 1 / (2 + 3), 0.0]  # 2·hits / (occur + predicted)
    assert macro_f1(targets, predicted, 3) == pytest.approx(np.mean(f1))
    # Classes missing from this set: recall has no meaning for them, F1 counts 0 when they are predicted.
    assert balanced_accuracy([0, 0, 1], [0, 2, 1]) == pytest.approx((1 / 2 + 1) / 2)
    assert macro_f1([0, 0, 1], [0, 2, 1], 3) == pytest.approx((2 / 3 + 1 + 0) / 3)


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_brier_score_is_the_mean_squared_error(n_classes: int) -> None:
    rng = np.random.default_rng(n_classes)
    targets, probabilities = rng.integers(0, n_classes, 30), rng.dirichlet(np.ones(n_classes), 30)
    squares = [
        sum((row[c] - (c == target)) ** 2 for c in range(n_classes))
        for target, row in zip(targets, probabilities, strict=True)
    ]
    if n_classes == 2:
        squares = [(row[1] - target) ** 2 for target, row in zip(targets, probabilities, strict=True)]
    assert brier_score(targets, probabilities) == pytest.approx(sum(squares) / 30)
    assert brier_score([0] * 4, np.eye(n_classes)[[0] * 4]) == 0  # a set of one class


def test_calibration_error_is_that_of_a_loop_over_slides() -> None:
    rng = np.random.default_rng(0)
    targets, probabilities = rng.integers(0, 3, 200), rng.dirichlet(np.ones(3), 200)
    bins: dict[int, list[tuple[float, bool]]] = {}
    for target, row in zip(targets, probabilities, strict=True):
        confidence = max(row)
        number = next(k for k in range(15) if confidence <= (k + 1) / 15)
        bins.setdefault(number, []).append((confidence, row.argmax() == target))
    expected = 0.0
    for entries in bins.values():
        accuracy = sum(right for _, right in entries) / len(entries)
        confidence = sum(value for value, _ in entries) / len(entries)
        expected += len(entries) / 200 * abs(accuracy - confidence)
    assert calibration_error(targets, probabilities) == pytest.approx(expected)
    assert sum(one.slides for one in reliability(targets, probabilities)) == 200


def test_the_bins_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    # Some exactly on the edges of bins, some 0 and 1.
    positive = np.concatenate([rng.random(80), np.linspace(0, 1, 16), [0.5, 1.0]])
    targets, probabilities = rng.integers(0, 2, len(positive)), np.stack([1 - positive, positive], axis=1)
    right = probabilities.argmax(axis=1) == targets
    accuracies, confidences = calibration_curve(right, probabilities.max(axis=1), n_bins=15)
    bins = reliability(targets, probabilities)
    assert [one.accuracy for one in bins] == pytest.approx(list(accuracies))
    assert [one.confidence for one in bins] == pytest.approx(list(confidences))


def test_certain_and_right_is_perfect_and_certain_and_wrong_the_worst() -> None:
    certain = np.eye(2)[[0, 1, 1, 0]]
    assert (brier_score([0, 1, 1, 0], certain), calibration_error([0, 1, 1, 0], certain)) == (0, 0)
    assert (brier_score([1, 0, 0, 1], certain), calibration_error([1, 0, 0, 1], certain)) == (1, 1)


def test_a_figure_says_how_it_is_averaged() -> None:
    for n_classes in (2, 3):
        words = averaging(n_classes)
        assert list(words) == ["auc", "balanced_accuracy", "macro_f1", "brier_score", "calibration_error"]
        assert all(words.values())
    assert "one-vs-rest" in averaging(3)["auc"]
    assert "0 to 2" in averaging(3)["brier_score"]


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(ValueError, match="belong together"):
        auc([0, 1], [0.5])
    with pytest.raises(ValueError, match=r"outside 0\.\.1"):
        auc([0, 2], [0.5, 0.5])
