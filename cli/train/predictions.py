"""``predictions.csv``: what the model said about each test slide. It names patients, so it stays with the hospital."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import numpy as np
from numpy.typing import NDArray

from fedpath.cli.train.data import site_and_patient
from fedpath.core.cohort import Example
from fedpath.core.errors import DataError
from fedpath.core.files import write_text
from fedpath.core.models.protocol import Route
from fedpath.core.training import Examined

_COLUMNS = ("site", "patient_id", "slide_id", "fold", "label")
ROUTES: tuple[Route, ...] = get_args(Route)


@dataclass(frozen=True, slots=True)
class Prediction:
    """One test slide."""

    site: str
    patient: str
    slide: str
    fold: int | None
    target: int
    probabilities: tuple[float, ...]
    route: Route | None = None
    """The branch that the slide went by, of a model that has two."""

    @property
    def person(self) -> str:
        """The patient among those of all hospitals."""
        return f"{self.site}:{self.patient}"


def predictions_of(examples: Sequence[Example], examined: Examined, fold: int | None) -> list[Prediction]:
    """Return the predictions for examples from what a model said about them."""
    return [
        Prediction(*site_and_patient(example), example.slide_id, fold, example.target, tuple(map(float, row)), route)
        for example, row, route in zip(examples, examined.probabilities_BC, examined.routes, strict=True)
    ]


def arrays(predictions: Sequence[Prediction]) -> tuple[NDArray[np.int64], NDArray[np.float64], list[str]]:
    """Return targets (B), probabilities (B, C) and patients, as the metrics take them."""
    return (
        np.array([prediction.target for prediction in predictions], dtype=np.int64),
        np.array([prediction.probabilities for prediction in predictions]),
        [prediction.person for prediction in predictions],
    )


def write_predictions(path: Path, predictions: Sequence[Prediction], labels: Sequence[str]) -> None:
    """Write one row a slide; the probabilities with all their digits; ``branch`` if the model has any."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    is_routed = any(one.route is not None for one in predictions)
    writer.writerow(_header(labels, is_routed))
    for one in predictions:
        fold = "" if one.fold is None else one.fold
        branch = [one.route] if is_routed else []
        writer.writerow(
            [one.site, one.patient, one.slide, fold, labels[one.target], *branch, *map(repr, one.probabilities)]
        )
    write_text(path, text.getvalue())


def read_predictions(path: Path, labels: Sequence[str]) -> list[Prediction]:
    """Read what ``write_predictions`` wrote, with the column `branch` or without it.

    Raises:
        DataError: somebody changed the file.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        if header not in (_header(labels, False), _header(labels, True)):
            raise ValueError("its columns are others")
        return [_prediction(dict(zip(header, cells, strict=True)), labels) for cells in rows]
    except ValueError as error:
        raise DataError(
            f"{path}: not as it was written: {error}", remedy="remove its folder to train it again"
        ) from None


def _prediction(row: dict[str, str], labels: Sequence[str]) -> Prediction:
    site, patient, slide, fold, label = (row[column] for column in _COLUMNS)
    return Prediction(
        site,
        patient,
        slide,
        int(fold),
        list(labels).index(label),
        tuple(float(row[f"probability_{label}"]) for label in labels),
        ROUTES[ROUTES.index(cast(Route, row["branch"]))] if "branch" in row else None,
    )


def _header(labels: Sequence[str], is_routed: bool) -> list[str]:
    return [*_COLUMNS, *(["branch"] if is_routed else []), *(f"probability_{label}" for label in labels)]
