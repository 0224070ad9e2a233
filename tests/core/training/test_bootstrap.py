"""Intervals: one resampling of patients for all metrics, against a plain loop over resampled slides."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, f1_score, roc_auc_score

from fedpath.core.training import bootstrap, bootstrap_auc, brier_score, calibration_error
from fedpath.core.training.bootstrap import _drawn, _weighted_auc
from fedpath.core.training.metrics import averaging


def make_predictions(n_classes: int, slides: int = 60, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any], list[str]]:
    """Targets, probabilities that know something of them, and patients with one to a few slides each."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, n_classes, slides)
    logits = rng.normal(size=(slides, n_classes)) + 1.2 * np.eye(n_classes)[targets]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return targets, probabilities, [f"p{i}" for i in rng.integers(0, slides // 2, slides)]


@pytest.mark.parametrize("n_classes", [2, 3])
def test_every_sample_has_the_metrics_of_its_repeated_slides(n_classes: int) -> None:
    targets, probabilities, patients = make_predictions(n_classes)
    seed, samples = 3, 40
    drawn_SB = _drawn(targets, patients, seed, samples)
    expected: dict[str, list[float]] = {name: [] for name in averaging(n_classes)}
    for drawn_B in drawn_SB.astype(int):
        rows = np.repeat(np.arange(len(targets)), drawn_B)
        y, p = targets[rows], probabilities[rows]
        auc = roc_auc_score(y, p[:, 1]) if n_classes == 2 else roc_auc_score(y, p, multi_class="ovr", average="macro")
        expected["auc"].append(auc)
        expected["balanced_accuracy"].append(balanced_accuracy_score(y, p.argmax(axis=1)))
        expected["macro_f1"].append(f1_score(y, p.argmax(axis=1), average="macro", labels=range(n_classes)))
        expected["brier_score"].append(brier_score_loss(y, p if n_classes > 2 else p[:, 1]))
        expected["calibration_error"].append(calibration_error(y, p))
    intervals = bootstrap(targets, probabilities, patients, seed=seed, samples=samples)
    assert list(intervals) == list(expected)
    for name, values in expected.items():
        interval = intervals[name]
        assert interval is not None
        assert (interval.low, interval.high) == pytest.approx(np.percentile(values, [2.5, 97.5])), name
        assert interval.low <= interval.value <= interval.high or name == "calibration_error"


def test_a_patients_slides_are_drawn_together_and_every_class_is_there() -> None:
    targets, _, patients = make_predictions(3, slides=12)
    drawn_SB = _drawn(targets, patients, 0, 500)
    assert 0 < len(drawn_SB) < 500  # some samples missed a class
    for patient in set(patients):
        columns = drawn_SB[:, [i for i, name in enumerate(patients) if name == patient]]
        assert (columns == columns[:, :1]).all()
    for c in np.unique(targets):
        assert (drawn_SB[:, targets == c].sum(axis=1) > 0).all()


def test_the_auc_is_that_of_the_auc_alone() -> None:
    targets, probabilities, patients = make_predictions(2)
    together = bootstrap(targets, probabilities, patients, seed=1)["auc"]
    assert together == bootstrap_auc(targets, probabilities, patients, seed=1)


def test_one_class_only_has_no_auc_but_the_other_figures() -> None:
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
    intervals = bootstrap([0, 0, 0], probabilities, ["a", "b", "c"], seed=0)
    assert intervals["auc"] is None
    assert intervals["brier_score"] is not None
    assert intervals["brier_score"].value == brier_score([0, 0, 0], probabilities)
    for targets in ([1, 1, 1], [0, 0, 0], []):
        assert bootstrap_auc(targets, np.arange(len(targets)) / 10, ["p"] * len(targets), seed=0) is None


def test_weighted_auc_is_that_of_repeated_slides() -> None:
    rng = np.random.default_rng(1)
    positive, scores = rng.random(25) < 0.4, rng.integers(0, 6, 25) / 6
    weights_SB = rng.integers(0, 4, (20, 25)).astype(float)
    for got, weights in zip(_weighted_auc(positive, scores, weights_SB), weights_SB, strict=True):
        assert got == pytest.approx(roc_auc_score(positive, scores, sample_weight=weights))


def test_bootstrap_equals_a_loop_over_resampled_patients() -> None:
    rng = np.random.default_rng(2)
    patients = [f"p{i}" for i in rng.integers(0, 15, 40)]
    targets = rng.integers(0, 2, 40)
    scores = targets * 0.3 + rng.random(40)
    interval = bootstrap_auc(targets, scores, patients, seed=0, samples=4000)
    assert interval is not None
    assert interval.value == pytest.approx(roc_auc_score(targets, scores))

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


def test_a_patient_for_every_slide() -> None:
    with pytest.raises(ValueError, match="1 patients for 2 slides"):
        bootstrap_auc([0, 1], [0.5, 0.5], ["a"], seed=0)
    with pytest.raises(ValueError, match="1 patients for 2 slides"):
        bootstrap([0, 1], [[0.5, 0.5]] * 2, ["a"], seed=0)
