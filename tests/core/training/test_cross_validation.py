"""Folds of examples: who trains, validates and tests, and when a finished fold is still the same."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from fedpath.core.bags import Bag
from fedpath.core.clinical.record import ClinicalRecord
from fedpath.core.cohort import Example
from fedpath.core.errors import DataError
from fedpath.core.training.cross_validation import Fold, fingerprint, make_folds, spread


def make_examples(patients: int = 30, classes: int = 2) -> list[Example]:
    """Two slides a patient; the class by turns."""
    generator = torch.Generator().manual_seed(0)
    examples = []
    for number in range(2 * patients):
        bag = Bag(
            f"s{number}", torch.randn(3, 4, generator=generator).half(), torch.zeros(3, 2, dtype=torch.int64), 256
        )
        patient = number // 2
        examples.append(Example(bag, patient % classes, f"A:p{patient}", f"s{number}"))
    return examples


def folds_of(examples: list[Example], folds: int = 5, share: float = 0.2, seed: int = 0) -> list[Fold]:
    return make_folds(examples, ["no", "yes", "else"], folds=folds, validation_share=share, seed=seed)


def patients(examples: list[Example]) -> set[str]:
    return {example.patient_id for example in examples}


@pytest.mark.parametrize("classes", [2, 3])
def test_every_slide_is_in_every_fold_once_and_tested_in_one(classes: int) -> None:
    examples = make_examples(classes=classes)
    made = folds_of(examples)
    assert [fold.number for fold in made] == [1, 2, 3, 4, 5]
    tested = Counter(example.slide_id for fold in made for example in fold.examples["test"])
    assert tested == {example.slide_id: 1 for example in examples}
    for fold in made:
        parts = fold.examples
        assert sum(len(part) for part in parts.values()) == len(examples)
        groups = [patients(parts[split]) for split in ("train", "validation", "test")]
        assert sum(map(len, groups)) == 30  # nobody in two
        for split in ("train", "validation", "test"):
            assert {example.target for example in parts[split]} == set(range(classes))
        # Of 24 patients that are not tested, a fifth of each class, rounded.
        assert len(groups[1]) == classes * round(24 / classes * 0.2)


def test_folds_choose_their_best_on_different_patients() -> None:
    chosen = [frozenset(patients(fold.examples["validation"])) for fold in folds_of(make_examples(60))]
    assert len(set(chosen)) == 5
    assert not frozenset.intersection(*chosen)


def test_the_split_of_the_manifest_and_the_seed() -> None:
    def tested(examples: list[Example], seed: int) -> list[set[str]]:
        return [patients(fold.examples["test"]) for fold in folds_of(examples, seed=seed)]

    examples = make_examples()
    assert tested(examples, 0) == tested(examples[::-1], 0)
    assert tested(examples, 0) != tested(examples, 1)


def test_too_few_patients_of_a_class_are_named_with_the_remedy() -> None:
    examples = make_examples(12)
    few = [example for example in examples if example.target == 0 or example.patient_id in ("A:p1", "A:p3", "A:p5")]
    with pytest.raises(DataError, match=r"class 'yes' has 3 patients, too few for 5 folds \(use --folds 3, or add"):
        folds_of(few)
    one = [example for example in examples if example.target == 0 or example.patient_id == "A:p1"]
    with pytest.raises(DataError, match=r"class 'yes' has 1 patients, too few for 2 folds \(add patients"):
        folds_of(one, folds=2)
    assert len(folds_of(few, folds=3)) == 3  # the third label occurs nowhere: nothing to spread


def test_the_fingerprint_sees_every_change_that_matters() -> None:
    parts = folds_of(make_examples())[0].examples
    first, *others = parts["train"]

    def changed(example: Example) -> str:
        return fingerprint(parts | {"train": [example, *others]})

    bag = first.bag
    other_features = bag.features_ND.clone()
    other_features[0, 1] += 0.5

    def with_record(values: list[float], present: list[bool]) -> str:
        record = ClinicalRecord(torch.tensor(values, dtype=torch.float64), torch.tensor(present))
        return changed(replace(first, bag=replace(bag, clinical=record)))

    before = fingerprint(parts)
    assert before == fingerprint(folds_of(make_examples())[0].examples)
    prints = [
        before,
        changed(replace(first, target=1 - first.target)),
        changed(replace(first, patient_id="A:other")),
        changed(replace(first, slide_id="other")),
        changed(replace(first, bag=replace(bag, features_ND=other_features))),
        changed(replace(first, bag=replace(bag, features_ND=bag.features_ND[:2]))),
        fingerprint(parts | {"train": others, "validation": [*parts["validation"], first]}),
        fingerprint(folds_of(make_examples())[1].examples),
        with_record([61.0, 0.0], [True, False]),
        with_record([61.0, 0.0], [True, True]),
        with_record([61.0, 1.0], [True, True]),
    ]
    assert len(set(prints)) == len(prints)


def test_the_spread_is_mean_and_sample_deviation() -> None:
    mean, deviation = spread([0.8, 0.9, 1.0])
    assert mean == pytest.approx(0.9)
    assert deviation == pytest.approx(0.1)
