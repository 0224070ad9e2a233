"""``predictions.csv``: what the model said about each test slide. It names patients, so it stays with the hospital."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedpath.cli.train.data import site_and_patient
from fedpath.core.cohort import Example
from fedpath.core.errors import DataError
from fedpath.core.files import write_text

_COLUMNS = ("site", "patient_id", "slide_id", "fold", "label")


@dataclass(frozen=True, slots=True)
class Prediction:
    """One test slide."""

    site: str
    patient: str
    slide: str
    fold: int | None
    target: int
    probabilities: tuple[float, ...]

    @property
    def person(self) -> str:
        """The patient among those of all hospitals."""
        return f"{self.site}:{self.patient}"


def predictions_of(
    examples: Sequence[Example], probabilities_BC: NDArray[np.float64], fold: int | None
) -> list[Prediction]:
    """Return the predictions for examples from their class probabilities (B, C)."""
    return [
        Prediction(*site_and_patient(example), example.slide_id, fold, example.target, tuple(map(float, row)))
        for example, row in zip(examples, probabilities_BC, strict=True)
    ]


def arrays(predictions: Sequence[Prediction]) -> tuple[NDArray[np.int64], NDArray[np.float64], list[str]]:
    """Return targets (B), probabilities (B, C) and patients, as the metrics take them."""
    return (
        np.array([prediction.target for prediction in predictions], dtype=np.int64),
        np.array([prediction.probabilities for prediction in predictions]),
        [prediction.person for prediction in predictions],
    )


def write_predictions(path: Path, predictions: Sequence[Prediction], labels: Sequence[str]) -> None:
    """Write one row a slide; the probabilities with all their digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, *(f"probability_{label}" for label in labels)])
    for one in predictions:
        fold = "" if one.fold is None else one.fold
        writer.writerow([one.site, one.patient, one.slide, fold, labels[one.target], *map(repr, one.probabilities)])
    write_text(path, text.getvalue())


def read_predictions(path: Path, labels: Sequence[str]) -> list[Prediction]:
    """Read what ``write_predictions`` wrote.

    Raises:
        DataError: somebody changed the file.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))[1:]
        return [
            Prediction(site, patient, slide, int(fold), list(labels).index(label), tuple(map(float, probabilities)))
            for site, patient, slide, fold, label, *probabilities in rows
        ]
    except ValueError as error:
        raise DataError(
            f"{path}: not as it was written: {error}", remedy="remove its folder to train it again"
        ) from None
