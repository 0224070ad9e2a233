"""Folds: every patient tested once, classes spread evenly, places that hold when the cohort grows."""

import random
from collections import Counter

import pytest

from fedpath.core.cohort import class_of, fold_patients


def make_cohort(sizes: dict[int, int]) -> dict[str, list[int]]:
    """Patients of each class with one to three slides."""
    return {f"{label}-{number}": [label] * (1 + number % 3) for label, size in sizes.items() for number in range(size)}


def test_a_patients_class_is_the_most_frequent_label_of_its_slides() -> None:
    assert class_of([1]) == 1
    assert class_of([0, 0, 1]) == 0
    assert class_of([0, 1]) == 1  # a tie goes to the higher
    assert class_of([2, 0, 0, 2, 1]) == 2


@pytest.mark.parametrize("sizes", [{0: 20, 1: 20}, {0: 7, 1: 5, 2: 13}, {1: 9}, {0: 5, 1: 6}])
@pytest.mark.parametrize("folds", [2, 3, 5])
def test_every_patient_is_tested_once_and_classes_are_spread_evenly(sizes: dict[int, int], folds: int) -> None:
    cohort = make_cohort(sizes)
    tested_in = fold_patients(cohort, folds=folds, seed=1)
    assert tested_in.keys() == cohort.keys()
    for label, size in sizes.items():
        counts = Counter(tested_in[patient] for patient in cohort if patient.startswith(f"{label}-"))
        assert sorted(counts) == list(range(folds))
        assert set(counts.values()) <= {size // folds, -(-size // folds)}


def test_larger_pieces_of_two_classes_meet_in_different_folds() -> None:
    tested_in = fold_patients(make_cohort({0: 6, 1: 6}), folds=5, seed=0)
    assert sorted(Counter(tested_in.values()).values()) == [2, 2, 2, 3, 3]


def test_the_order_of_the_rows_does_not_matter() -> None:
    cohort = make_cohort({0: 17, 1: 12})
    patients = list(cohort)
    random.Random(0).shuffle(patients)
    shuffled = {patient: cohort[patient] for patient in patients}
    assert fold_patients(shuffled, folds=5, seed=3) == fold_patients(cohort, folds=5, seed=3)


@pytest.mark.parametrize("newcomer", [f"new-{number}" for number in range(8)])
def test_a_new_patient_moves_few_of_its_class_by_one_fold_and_no_other(newcomer: str) -> None:
    folds, cohort = 5, make_cohort({0: 23, 1: 18})
    before = fold_patients(cohort, folds=folds, seed=0)
    after = fold_patients(cohort | {newcomer: [0]}, folds=folds, seed=0)
    moved = [patient for patient in cohort if before[patient] != after[patient]]
    assert len(moved) <= folds - 1
    assert all(patient.startswith("0-") for patient in moved)
    assert all((after[patient] - before[patient]) % folds in (1, folds - 1) for patient in moved)


def test_another_seed_deals_otherwise() -> None:
    cohort = make_cohort({0: 20, 1: 20})
    assert fold_patients(cohort, folds=5, seed=0) != fold_patients(cohort, folds=5, seed=1)


@pytest.mark.parametrize(("sizes", "folds"), [({0: 4, 1: 9}, 5), ({0: 4}, 1), ({0: 4}, 0)])
def test_what_cannot_be_folded_is_a_mistake(sizes: dict[int, int], folds: int) -> None:
    with pytest.raises(ValueError, match=f"{folds} folds of classes with"):
        fold_patients(make_cohort(sizes), folds=folds, seed=0)
