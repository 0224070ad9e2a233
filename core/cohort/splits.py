"""Splits by patient: stratified, seeded, and independent of the order in which patients are listed."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal


def split_patients(
    labels_of: Mapping[str, Sequence[int]], *, validation_share: float, test_share: float, seed: int
) -> dict[str, Literal["train", "validation", "test"]]:
    """Give every patient one split, class by class.

    A patient's class is the most frequent label of its slides (the highest on a tie). Within a class the patients are
    ordered by a hash of seed and name, so neither the rows' order nor other classes change a patient's place. Of n
    patients of a class, the shares are rounded to whole patients, with at least one each for test and validation where
    n allows (n ≥ 3) and always one or more for training.

    Args:
        labels_of: each patient's slide labels, at least one.
        validation_share: 0 ≤ share, both shares summing to less than 1; 0 asks for no validation patients.
        test_share: likewise.
        seed: of the order.
    """
    if validation_share < 0 or test_share < 0 or validation_share + test_share >= 1:
        raise ValueError(f"shares {validation_share} (validation) and {test_share} (test) leave nothing to train on")
    strata: dict[int, list[str]] = {}
    for patient, labels in labels_of.items():
        counts = Counter(labels)
        strata.setdefault(max(counts, key=lambda label: (counts[label], label)), []).append(patient)
    splits: dict[str, Literal["train", "validation", "test"]] = {}
    for patients in strata.values():
        patients.sort(key=lambda patient: hashlib.sha256(f"{seed}\0{patient}".encode()).digest())
        n_test, n_validation = _counts(len(patients), validation_share, test_share)
        for index, patient in enumerate(patients):
            in_validation = index < n_test + n_validation
            splits[patient] = "test" if index < n_test else "validation" if in_validation else "train"
    return splits


def _counts(n: int, validation_share: float, test_share: float) -> tuple[int, int]:
    """Return how many of a class's n patients are tested and validated on."""
    least = 1 if n >= 3 else 0
    n_test = max(round(test_share * n), least if test_share else 0)
    n_validation = max(round(validation_share * n), least if validation_share else 0)
    while n_test + n_validation >= n:  # rounding up both shares of a small class
        n_test, n_validation = (n_test - 1, n_validation) if n_test > n_validation else (n_test, n_validation - 1)
    return n_test, n_validation
