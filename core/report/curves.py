"""ROC and precision-recall curves from targets and probabilities, as the report draws them.

Two classes: class 1 is the positive one. More classes: one-vs-rest, the unweighted mean over the classes (macro).
Ties of the scores are one step of a curve, so the area under ``roc`` is the Mann-Whitney statistic.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def roc(targets_N: Ints, probabilities_NC: Floats) -> tuple[Floats, Floats] | None:
    """Return false and true positive rates [P], both from 0 to 1; None when a class has no slide.

    Fawcett, An introduction to ROC analysis (2006), algorithm 1. For more than two classes the true positive rates
    are averaged over the classes at each false positive rate, so the area is the macro one-vs-rest AUC.
    """
    classes = probabilities_NC.shape[1]
    if len(np.unique(targets_N)) < classes:
        return None
    if classes == 2:
        return _binary_roc(targets_N == 1, probabilities_NC[:, 1])
    curves = [_binary_roc(targets_N == c, probabilities_NC[:, c]) for c in range(classes)]
    grid = np.unique(np.concatenate([fpr for fpr, _ in curves]))
    # A step curve has two values where it jumps; keeping both sides keeps the area exact.
    before = np.mean([_left(grid, *curve) for curve in curves], axis=0)
    after = np.mean([_right(grid, *curve) for curve in curves], axis=0)
    return np.repeat(grid, 2), np.stack([before, after], axis=1).ravel()


def auc(targets_N: Ints, probabilities_NC: Floats) -> float | None:
    """Return the area under ``roc``; None when a class has no slide."""
    curve = roc(targets_N, probabilities_NC)
    return None if curve is None else float(np.trapezoid(curve[1], curve[0]))


def precision_recall(targets_N: Ints, scores_N: Floats) -> tuple[Floats, Floats, float] | None:
    """Return recall [P], precision [P] (thresholds falling) and the average precision; None without both classes.

    Two classes only; average precision = sum over steps of (gain in recall) x precision, without interpolation.
    """
    positive = targets_N == 1
    if positive.all() or not positive.any():
        return None
    hits, misses = _cumulated(positive, scores_N)
    recall, precision = hits / hits[-1], hits / (hits + misses)
    average = float(np.sum(np.diff(recall, prepend=0.0) * precision))
    return np.concatenate([[0.0], recall]), np.concatenate([[precision[0]], precision]), average


def _cumulated(positive: NDArray[np.bool_], scores_N: Floats) -> tuple[Floats, Floats]:
    """Count positives and negatives at or above each distinct score, from the highest score down."""
    order = np.argsort(-scores_N, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores_N[order])), len(order) - 1)
    hits = np.cumsum(positive[order])[ends].astype(np.float64)
    return hits, ends + 1.0 - hits


def _binary_roc(positive: NDArray[np.bool_], scores_N: Floats) -> tuple[Floats, Floats]:
    hits, misses = _cumulated(positive, scores_N)
    start = [0.0]
    return np.concatenate([start, misses / misses[-1]]), np.concatenate([start, hits / hits[-1]])


def _left(grid: Floats, fpr: Floats, tpr: Floats) -> Floats:
    """Value of the curve when ``grid`` is approached from below (the curve starts at 0)."""
    value = np.interp(grid, fpr, tpr)
    first = np.searchsorted(fpr, grid, side="left")
    found = fpr[np.minimum(first, len(fpr) - 1)] == grid
    value[found] = tpr[first[found]]
    return value


def _right(grid: Floats, fpr: Floats, tpr: Floats) -> Floats:
    """Value of the curve when ``grid`` is approached from above."""
    value = np.interp(grid, fpr, tpr)
    last = np.searchsorted(fpr, grid, side="right") - 1
    found = fpr[last] == grid
    value[found] = tpr[last[found]]
    return value
