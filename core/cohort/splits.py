"""Splits by patient: stratified, seeded, and independent of the order in which patients are listed."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal


def split_patients(
    labels_of: Mapping[str, Sequence[int]], *, validation_share: float, test_share: float, seed: int
) -> dict[str, Literal["train", "validation", "test"]]:
    """Give every patient one split, class by class.

    A patient's class is that of ``class_of``. Within a class the patients are ordered by a hash of seed and name, so
    neither the rows' order nor other classes change a patient's place. Of n patients of a class, the shares are rounded
    to whole patients, with at least one each for test and validation where n allows (n ≥ 3) and always one or more for
    training.

    Args:
        labels_of: each patient's slide labels, at least one.
        validation_share: 0 ≤ share, both shares summing to less than 1; 0 asks for no validation patients.
        test_share: likewise.
        seed: of the order.
    """
    if validation_share < 0 or test_share < 0 or validation_share + test_share >= 1:
        raise ValueError(f"shares {validation_share} (validation) and {test_share} (test) leave nothing to train on")
    splits: dict[str, Literal["train", "validation", "test"]] = {}
    for patients in _strata(labels_of, seed).values():
        n_test, n_validation = _counts(len(patients), validation_share, test_share)
        for index, patient in enumerate(patients):
            in_validation = index < n_test + n_validation
            splits[patient] = "test" if index < n_test else "validation" if in_validation else "train"
    return splits


def fold_patients(labels_of: Mapping[str, Sequence[int]], *, folds: int, seed: int) -> dict[str, int]:
    """Give every patient the fold (0 to ``folds`` − 1) in which it is tested, class by class.

    Classes and order are those of ``split_patients``. The n patients of a class are cut, in that order, into pieces
    that differ by one patient at most, and the class decides which fold gets the first piece, so that the larger
    pieces of different classes meet in different folds. One more patient shifts each cut by one place at most: of its
    class at most ``folds`` − 1 patients change to a neighbouring fold, of the other classes none. (scikit-learn's
    ``StratifiedGroupKFold`` deals all patients anew, and by the order of the rows.)

    Args:
        labels_of: each patient's slide labels, at least one.
        folds: at least 2, and no more than the patients of the smallest class.
        seed: of the order.
    """
    strata = _strata(labels_of, seed)
    if folds < 2 or any(len(patients) < folds for patients in strata.values()):
        raise ValueError(f"{folds} folds of classes with {sorted(map(len, strata.values()))} patients")
    return {
        patient: (piece + label) % folds
        for label, patients in strata.items()
        for piece in range(folds)
        for patient in patients[piece * len(patients) // folds : (piece + 1) * len(patients) // folds]
    }


def class_of(labels: Sequence[int]) -> int:
    """Return a patient's class: the most frequent label of its slides, the highest on a tie."""
    counts = Counter(labels)
    return max(counts, key=lambda label: (counts[label], label))


def _strata(labels_of: Mapping[str, Sequence[int]], seed: int) -> dict[int, list[str]]:
    """Return the patients of each class in the order of a hash of seed and name."""
    strata: dict[int, list[str]] = {}
    for patient, labels in labels_of.items():
        strata.setdefault(class_of(labels), []).append(patient)
    for patients in strata.values():
        patients.sort(key=lambda patient: hashlib.sha256(f"{seed}\0{patient}".encode()).digest())
    return strata


def _counts(n: int, validation_share: float, test_share: float) -> tuple[int, int]:
    """Return how many of a class's n patients are tested and validated on."""
    least = 1 if n >= 3 else 0
    n_test = max(round(test_share * n), least if test_share else 0)
    n_validation = max(round(validation_share * n), least if validation_share else 0)
    while n_test + n_validation >= n:  # rounding up both shares of a small class
        n_test, n_validation = (n_test - 1, n_validation) if n_test > n_validation else (n_test, n_validation - 1)
    return n_test, n_validation
