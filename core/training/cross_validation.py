"""Cross-validation: every patient is tested once, by a model that was trained without it."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from fedpath.core.cohort.examples import Example
from fedpath.core.cohort.manifest import Split
from fedpath.core.cohort.splits import class_of, fold_patients, split_patients
from fedpath.core.errors import DataError


@dataclass(frozen=True, slots=True)
class Fold:
    """One of the trainings of a cross-validation."""

    number: int
    """From 1."""
    examples: dict[Split, list[Example]]


def make_folds(
    examples: Sequence[Example], labels: Sequence[str], *, folds: int, validation_share: float, seed: int
) -> list[Fold]:
    """Split all examples ``folds`` times by patient, stratified; each patient is in one test fold.

    The test patients are those of ``fold_patients``. Of the others, ``split_patients`` draws the validation patients,
    with a seed of the fold's own so that not all folds choose their best epoch on the same patients.

    Args:
        examples: of all splits; which one a slide was in does not matter here.
        labels: the vocabulary, for the error.
        folds: at least 2.
        validation_share: of the patients that a fold does not test.
        seed: of both draws.

    Raises:
        DataError: a class that occurs has fewer patients than there are folds.
    """
    labels_of: dict[str, list[int]] = {}
    for example in examples:
        labels_of.setdefault(example.patient_id, []).append(example.target)
    counts = Counter(map(class_of, labels_of.values()))
    smallest = min(counts, key=lambda target: (counts[target], target))
    if counts[smallest] < folds:
        enough = f"use --folds {counts[smallest]}, or " if counts[smallest] > 1 else ""
        raise DataError(
            f"class '{labels[smallest]}' has {counts[smallest]} patients, too few for {folds} folds",
            remedy=f"{enough}add patients of that class, or take it out of the manifest",
        )
    tested_in = fold_patients(labels_of, folds=folds, seed=seed)
    made = []
    for fold in range(folds):
        rest = {patient: targets for patient, targets in labels_of.items() if tested_in[patient] != fold}
        own_seed = int.from_bytes(hashlib.sha256(f"{seed}/{fold}".encode()).digest()[:7])
        splits = split_patients(rest, validation_share=validation_share, test_share=0, seed=own_seed)
        parts: dict[Split, list[Example]] = {"train": [], "validation": [], "test": []}
        for example in examples:
            parts[splits.get(example.patient_id, "test")].append(example)
        made.append(Fold(fold + 1, parts))
    return made


def fingerprint(examples: dict[Split, list[Example]]) -> str:
    """Return a hash of the examples: splits, slides, patients, labels, patches, clinical data.

    The first patch stands for all: features that were made anew in another way differ there too.
    """
    digest = hashlib.sha256()
    for split, part in examples.items():
        for example in part:
            entry = (split, example.patient_id, example.slide_id, example.target, len(example.bag))
            digest.update(repr(entry).encode() + example.bag.features_ND[0].double().numpy().tobytes())
            if (record := example.bag.clinical) is not None:
                digest.update(b"clinical" + record.values_F.numpy().tobytes() + record.present_F.numpy().tobytes())
    return digest.hexdigest()


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation of at least two figures, one a fold."""
    return fmean(values), stdev(values)
