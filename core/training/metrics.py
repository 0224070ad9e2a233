"""Metrics of slide-level predictions. Every slide counts the same; intervals: see ``bootstrap``.

scikit-learn is imported where it is called: that takes a second, which processes that only train need not wait.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
N_BINS = 15
"""Of the top class's probability, for calibration."""


def auc(targets: ArrayLike, scores: ArrayLike) -> float | None:
    """Area under the ROC curve: the chance that a positive slide scores above a negative one, ties counting half.

    Args:
        targets: class index of each slide (B).
        scores: the positive class's score (B) or the classes' probabilities (B, C). With more than two classes, the
            unweighted mean over the one-vs-rest AUCs of the classes that occur.

    Returns:
        The AUC, or None when fewer than two classes occur.
    """
    from sklearn.metrics import roc_auc_score

    targets_B, scores_BC = checked(targets, scores)
    parts = [roc_auc_score(positive_B, score_B) for positive_B, score_B in one_vs_rest(targets_B, scores_BC)]
    return float(np.mean(parts)) if parts else None


def balanced_accuracy(targets: ArrayLike, predicted: ArrayLike) -> float:
    """Return the mean recall over the classes that occur in ``targets``."""
    from sklearn.metrics import recall_score

    present = np.unique(np.asarray(targets))
    return float(recall_score(targets, predicted, labels=present, average="macro", zero_division=0))


def macro_f1(targets: ArrayLike, predicted: ArrayLike, n_classes: int) -> float:
    """Return the unweighted mean F1 over all classes (never micro, which is accuracy).

    A class that neither occurs nor is predicted counts 0, as in scikit-learn with all labels named.
    """
    from sklearn.metrics import f1_score

    return float(f1_score(targets, predicted, labels=range(n_classes), average="macro", zero_division=0))


def brier_score(targets: ArrayLike, probabilities: ArrayLike) -> float:
    """Return the mean squared error of the probabilities (Brier 1950); 0 is perfect.

    Two classes: of the positive class's probability, from 0 to 1. More: summed over the classes, from 0 to 2.
    """
    from sklearn.metrics import brier_score_loss

    targets_B, probabilities_BC = checked(targets, probabilities)
    return float(brier_score_loss(targets_B, probabilities_BC, labels=range(probabilities_BC.shape[1])))


def calibration_error(targets: ArrayLike, probabilities: ArrayLike) -> float:
    """Return the expected calibration error: |accuracy − confidence| of each bin, weighted by its slides.

    Naeini et al., AAAI 2015, on the top class as Guo et al., ICML 2017, with the bins of ``reliability``. It is never
    negative, so on few slides even perfect probabilities score above 0.
    """
    bins = reliability(targets, probabilities)
    total = sum(one.slides for one in bins)
    return sum(one.slides / total * abs(one.accuracy - one.confidence) for one in bins)


@dataclass(frozen=True, slots=True)
class Bin:
    """The slides whose top class has a probability in one of the bins."""

    confidence: float
    """Mean probability of the top class."""
    accuracy: float
    """Share of slides whose top class is right."""
    slides: int


def reliability(targets: ArrayLike, probabilities: ArrayLike) -> list[Bin]:
    """Return the bins that hold slides, of ``N_BINS`` of equal width over the probability of the top class.

    A bin includes its upper edge, as in scikit-learn's ``calibration_curve``, which does not tell its slides' number.
    """
    targets_B, probabilities_BC = checked(targets, probabilities)
    confidence_B, right_B, bin_B = top_class(targets_B, probabilities_BC)
    return [
        Bin(float(confidence_B[here].mean()), float(right_B[here].mean()), int(here.sum()))
        for here in (bin_B == index for index in range(N_BINS))
        if here.any()
    ]


def top_class(targets_B: Ints, probabilities_BC: Floats) -> tuple[Floats, Floats, Ints]:
    """Return of each slide the probability of its top class, whether that is right (1 or 0), and its bin."""
    confidence_B = probabilities_BC.max(axis=1)
    right_B = (probabilities_BC.argmax(axis=1) == targets_B).astype(np.float64)
    return confidence_B, right_B, np.searchsorted(np.linspace(0, 1, N_BINS + 1)[1:-1], confidence_B)


def averaging(n_classes: int) -> dict[str, str]:
    """Say of each figure over how it is averaged; the keys are those of ``Metrics`` and of ``bootstrap``."""
    two = n_classes == 2
    return {
        "auc": "area under the ROC curve of the second label"
        if two
        else "one-vs-rest areas under the ROC curve, unweighted mean over the labels that occur (macro)",
        "balanced_accuracy": "recall, unweighted mean over the labels that occur",
        "macro_f1": "F1, unweighted mean over all labels",
        "brier_score": "squared error of the second label's probability, mean over slides (0 to 1)"
        if two
        else "squared error of the probabilities, summed over labels, mean over slides (0 to 2)",
        "calibration_error": f"distance of accuracy from confidence of the top label in {N_BINS} equal bins, by slides",
    }


def one_vs_rest(targets_B: Ints, scores_BC: Floats) -> list[tuple[NDArray[np.bool_], Floats]]:
    """Return (is positive, score) for the positive class of two, or for every class of more, where both sides occur."""
    n_classes = scores_BC.shape[1]
    classes = [1] if n_classes == 2 else range(n_classes)
    pairs = [(targets_B == c, scores_BC[:, c]) for c in classes]
    return [(positive_B, score_B) for positive_B, score_B in pairs if positive_B.any() and not positive_B.all()]


def checked(targets: ArrayLike, scores: ArrayLike) -> tuple[Ints, Floats]:
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
