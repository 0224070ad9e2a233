"""Confidence intervals of the metrics: the percentile bootstrap over patients (Efron and Tibshirani 1993).

Slides of one patient are not independent, so whole patients are drawn with replacement, and one draw serves every
metric. How often each patient is drawn is multinomial; a slide weighs as often as its patient was drawn. So a metric of
a sample is the metric with these weights, which numpy computes for thousands of samples S at once. A sample in which
some class of the data does not occur has another estimand and is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedpath.core.training.metrics import (
    N_BINS,
    Floats,
    Ints,
    auc,
    balanced_accuracy,
    brier_score,
    calibration_error,
    checked,
    macro_f1,
    one_vs_rest,
    top_class,
)


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def bootstrap(
    targets: ArrayLike, probabilities: ArrayLike, patients: Sequence[str], *, seed: int, samples: int = 2000
) -> dict[str, Interval | None]:
    """Return each metric of ``averaging`` with its interval; the AUC is None when fewer than two classes occur.

    Args:
        targets: class index of each slide (B), at least one.
        probabilities: of the classes (B, C).
        patients: patient of each slide (B).
        seed: of the resampling.
        samples: bootstrap samples drawn.
    """
    targets_B, probabilities_BC = checked(targets, probabilities)
    predicted_B = probabilities_BC.argmax(axis=1)
    weights_SB = _drawn(targets_B, patients, seed, samples)
    recall_SC, f1_SC = _recall_and_f1(targets_B, predicted_B, weights_SB, probabilities_BC.shape[1])
    present = np.unique(targets_B)
    value = auc(targets_B, probabilities_BC)
    return {
        "auc": None if value is None else _interval(value, _aucs(targets_B, probabilities_BC, weights_SB)),
        "balanced_accuracy": _interval(balanced_accuracy(targets_B, predicted_B), recall_SC[:, present].mean(axis=1)),
        "macro_f1": _interval(macro_f1(targets_B, predicted_B, probabilities_BC.shape[1]), f1_SC.mean(axis=1)),
        "brier_score": _interval(
            brier_score(targets_B, probabilities_BC), _brier_scores(targets_B, probabilities_BC, weights_SB)
        ),
        "calibration_error": _interval(
            calibration_error(targets_B, probabilities_BC), _calibration_errors(targets_B, probabilities_BC, weights_SB)
        ),
    }


def bootstrap_auc(
    targets: ArrayLike, scores: ArrayLike, patients: Sequence[str], *, seed: int, samples: int = 2000
) -> Interval | None:
    """Return the AUC with its interval, or None when fewer than two classes occur; scores as in ``auc``."""
    targets_B, scores_BC = checked(targets, scores)
    value = auc(targets_B, scores_BC)
    if value is None:
        return None
    return _interval(value, _aucs(targets_B, scores_BC, _drawn(targets_B, patients, seed, samples)))


def _drawn(targets_B: Ints, patients: Sequence[str], seed: int, samples: int) -> Floats:
    """Return how often each slide is drawn in each of the samples that hold every class of the data."""
    if len(patients) != len(targets_B):
        raise ValueError(f"{len(patients)} patients for {len(targets_B)} slides")
    names, patient_B = np.unique(np.asarray(patients), return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn_SP = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=samples)
    weights_SB = drawn_SP[:, patient_B].astype(np.float64)
    holds_S = np.all([weights_SB[:, targets_B == c].any(axis=1) for c in np.unique(targets_B)], axis=0)
    return weights_SB[holds_S]


def _interval(value: float, sampled_S: Floats) -> Interval:
    low, high = np.percentile(sampled_S, [2.5, 97.5]) if len(sampled_S) else (value, value)
    return Interval(value, float(low), float(high))


def _aucs(targets_B: Ints, scores_BC: Floats, weights_SB: Floats) -> Floats:
    parts = [
        _weighted_auc(positive_B, score_B, weights_SB) for positive_B, score_B in one_vs_rest(targets_B, scores_BC)
    ]
    return np.asarray(np.mean(parts, axis=0), dtype=np.float64)


def _weighted_auc(positive_B: NDArray[np.bool_], score_B: Floats, weights_SB: Floats) -> Floats:
    """Return the AUC under each row of slide weights: scikit-learn's weighted AUC, for thousands of rows at once."""
    order_B = np.argsort(score_B, kind="stable")
    # Slides of equal score form one step of the ROC curve.
    starts_G = np.flatnonzero(np.r_[True, np.diff(score_B[order_B]) > 0])
    weights_SB, positive_B = weights_SB[:, order_B], positive_B[order_B]
    positives_SG = np.add.reduceat(weights_SB * positive_B, starts_G, axis=1)
    negatives_SG = np.add.reduceat(weights_SB * ~positive_B, starts_G, axis=1)
    below_SG = np.cumsum(negatives_SG, axis=1) - negatives_SG
    won_S = (positives_SG * (below_SG + 0.5 * negatives_SG)).sum(axis=1)
    won_S /= positives_SG.sum(axis=1) * negatives_SG.sum(axis=1)
    return np.asarray(won_S, dtype=np.float64)


def _recall_and_f1(targets_B: Ints, predicted_B: Ints, weights_SB: Floats, n_classes: int) -> tuple[Floats, Floats]:
    """Return recall and F1 of each class (S, C) under each row of whole weights; 0/0 is 0, as in scikit-learn."""
    classes_C = np.arange(n_classes)
    is_BC, called_BC = targets_B[:, None] == classes_C, predicted_B[:, None] == classes_C
    is_SC, called_SC, hits_SC = weights_SB @ is_BC, weights_SB @ called_BC, weights_SB @ (is_BC & called_BC)
    return hits_SC / np.maximum(is_SC, 1), 2 * hits_SC / np.maximum(is_SC + called_SC, 1)


def _brier_scores(targets_B: Ints, probabilities_BC: Floats, weights_SB: Floats) -> Floats:
    n_classes = probabilities_BC.shape[1]
    error_B = np.square(probabilities_BC - (targets_B[:, None] == np.arange(n_classes))).sum(axis=1)
    return np.asarray(weights_SB @ error_B / weights_SB.sum(axis=1) / (2 if n_classes == 2 else 1))


def _calibration_errors(targets_B: Ints, probabilities_BC: Floats, weights_SB: Floats) -> Floats:
    confidence_B, right_B, bin_B = top_class(targets_B, probabilities_BC)
    # n_b |accuracy_b − confidence_b| is the magnitude of the summed difference within the bin.
    gap_SK = (weights_SB * (right_B - confidence_B)) @ (bin_B[:, None] == np.arange(N_BINS))
    return np.asarray(np.abs(gap_SK).sum(axis=1) / weights_SB.sum(axis=1))
