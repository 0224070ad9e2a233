"""Metrics of slide-level predictions, and confidence intervals that respect patients."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import f1_score, recall_score, roc_auc_score

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def auc(targets: ArrayLike, scores: ArrayLike) -> float | None:
    """Area under the ROC curve: the chance that a positive slide scores above a negative one, ties counting half.

    Args:
        targets: class index of each slide (B).
        scores: the positive class's score (B) or the classes' probabilities (B, C). With more than two classes, the
            unweighted mean over the one-vs-rest AUCs of the classes that occur.

    Returns:
        The AUC, or None when fewer than two classes occur.
    """
    targets_B, scores_BC = _checked(targets, scores)
    parts = [roc_auc_score(positive_B, score_B) for positive_B, score_B in _one_vs_rest(targets_B, scores_BC)]
    return float(np.mean(parts)) if parts else None


def balanced_accuracy(targets: ArrayLike, predicted: ArrayLike) -> float:
    """Return the mean recall over the classes that occur in ``targets``."""
    present = np.unique(np.asarray(targets))
    return float(recall_score(targets, predicted, labels=present, average="macro", zero_division=0))


def macro_f1(targets: ArrayLike, predicted: ArrayLike, n_classes: int) -> float:
    """Return the unweighted mean F1 over all classes (never micro, which is accuracy).

    A class that neither occurs nor is predicted counts 0, as in scikit-learn with all labels named.
    """
    return float(f1_score(targets, predicted, labels=range(n_classes), average="macro", zero_division=0))


def bootstrap_auc(
    targets: ArrayLike, scores: ArrayLike, patients: Sequence[str], *, seed: int, samples: int = 2000
) -> Interval | None:
    """Return the AUC with its 95 % percentile interval from resampling patients.

    Slides of one patient are not independent, so whole patients are drawn with replacement. A sample in which some
    class of the data does not occur has another estimand and is left out.

    Args:
        targets: class index of each slide (B).
        scores: as in ``auc``.
        patients: patient of each slide (B).
        seed: of the resampling.
        samples: bootstrap samples drawn.

    Returns:
        The interval, or None when fewer than two classes occur.
    """
    targets_B, scores_BC = _checked(targets, scores)
    if len(patients) != len(targets_B):
        raise ValueError(f"{len(patients)} patients for {len(targets_B)} slides")
    value = auc(targets_B, scores_BC)
    if value is None:
        return None
    names, patient_B = np.unique(np.asarray(patients), return_inverse=True)
    rng = np.random.default_rng(seed)
    # How often each patient is drawn is multinomial; a slide weighs as often as its patient was drawn.
    drawn_SP = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=samples)
    weights_SB = drawn_SP[:, patient_B].astype(np.float64)
    with np.errstate(invalid="ignore"):  # 0/0 where a class was not drawn: those samples drop out below
        parts = [
            _weighted_auc(positive_B, score_B, weights_SB) for positive_B, score_B in _one_vs_rest(targets_B, scores_BC)
        ]
    sampled_S = np.mean(parts, axis=0)
    sampled_S = sampled_S[np.isfinite(sampled_S)]
    low, high = np.percentile(sampled_S, [2.5, 97.5]) if len(sampled_S) else (value, value)
    return Interval(value, float(low), float(high))


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


def _one_vs_rest(targets_B: NDArray[np.int64], scores_BC: Floats) -> list[tuple[NDArray[np.bool_], Floats]]:
    """Return (is positive, score) for the positive class of two, or for every class of more, where both sides occur."""
    n_classes = scores_BC.shape[1]
    classes = [1] if n_classes == 2 else range(n_classes)
    pairs = [(targets_B == c, scores_BC[:, c]) for c in classes]
    return [(positive_B, score_B) for positive_B, score_B in pairs if positive_B.any() and not positive_B.all()]


def _checked(targets: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.int64], Floats]:
    """Return targets (B) and scores (B, C), a one-column score as the second of two classes."""
    targets_B = np.asarray(targets, dtype=np.int64)
    scores_BC = np.asarray(scores, dtype=np.float64)
    if scores_BC.ndim == 1:
        scores_BC = np.stack([-scores_BC, scores_BC], axis=1)
    if targets_B.ndim != 1 or scores_BC.ndim != 2 or len(targets_B) != len(scores_BC):
        raise ValueError(f"targets {targets_B.shape} and scores {scores_BC.shape} do not belong together")
    if targets_B.size and not 0 <= targets_B.min() <= targets_B.max() < scores_BC.shape[1]:
        raise ValueError(f"targets outside 0..{scores_BC.shape[1] - 1}")
    return targets_B, scores_BC
