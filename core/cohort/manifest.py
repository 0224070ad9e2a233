"""The manifest: which slides a hospital has, whose they are, their labels and their splits.

A CSV with a header. Each column may carry its name from any of the common tools:

| column | also known as |
|---|---|
| ``slide_id`` | ``slide``, ``filename`` (STAMP; a file extension is dropped) |
| ``patient_id`` | ``patient`` (STAMP), ``case_id`` (CLAM) |
| ``label`` | |
| ``split`` (optional) | |
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from fedpath.core.cohort.splits import class_of, split_patients
from fedpath.core.errors import DataError, did_you_mean

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

_COLUMNS = {
    "slide_id": ("slide_id", "slide", "filename"),
    "patient_id": ("patient_id", "patient", "case_id"),
    "label": ("label",),
    "split": ("split",),
}
_SPLIT_NAMES = {"train": "train", "training": "train", "val": "validation", "validation": "validation", "test": "test"}
_EXTENSIONS = (".h5", ".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".svslide", ".dcm")


@dataclass(frozen=True, slots=True)
class Slide:
    """One row of the manifest."""

    slide_id: str
    patient_id: str
    label: int
    """Index into the label vocabulary."""
    split: Split


@dataclass(frozen=True, slots=True)
class Cohort:
    """A hospital's slides, by slide_id: the order of the manifest's rows changes nothing downstream."""

    name: str
    slides: tuple[Slide, ...]
    labels: tuple[str, ...]

    def of(self, split: Split) -> list[Slide]:
        """Return the slides of a split."""
        return [slide for slide in self.slides if slide.split == split]

    def patients(self, split: Split) -> set[str]:
        """Return the patients of a split."""
        return {slide.patient_id for slide in self.of(split)}

    def classes(self) -> dict[str, int]:
        """Return each patient's class, see ``splits.class_of``."""
        labels_of: dict[str, list[int]] = {}
        for slide in self.slides:
            labels_of.setdefault(slide.patient_id, []).append(slide.label)
        return {patient: class_of(labels) for patient, labels in labels_of.items()}


@dataclass(frozen=True, slots=True)
class _Row:
    line: int
    slide_id: str
    patient_id: str
    label: int
    split: Split | None


def load_cohort(
    manifest: Path,
    *,
    labels: Sequence[str],
    validation_share: float = 0.2,
    test_share: float = 0.2,
    split_seed: int = 0,
    name: str = "",
) -> Cohort:
    """Load a manifest; without a split column the patients are split here, see ``splits.split_patients``.

    Args:
        manifest: the CSV file (UTF-8; comma, semicolon or tab).
        labels: the vocabulary in class order; a row's label is one of these words.
        validation_share: share of the patients, for manifests without a split column.
        test_share: likewise.
        split_seed: likewise.
        name: of the cohort, usually the site's; the manifest's folder by default.

    Raises:
        DataError: naming the file, the row and the remedy, for a missing column, an empty cell, a duplicate slide, a
            label outside the vocabulary, an unknown split, a patient in two splits, or no slide to train on.
    """
    rows = _read(manifest, labels)
    _refuse_duplicates(manifest, rows)
    assigned: dict[str, Split] = {}
    if rows[0].split is None:
        labels_of: dict[str, list[int]] = {}
        for row in rows:
            labels_of.setdefault(row.patient_id, []).append(row.label)
        assigned.update(
            split_patients(labels_of, validation_share=validation_share, test_share=test_share, seed=split_seed)
        )
    else:
        assigned.update(_declared_splits(manifest, rows))
    slides = [Slide(row.slide_id, row.patient_id, row.label, assigned[row.patient_id]) for row in rows]
    if not any(slide.split == "train" for slide in slides):
        raise DataError(f"{manifest}: no slide is in the split 'train'", remedy="give some patients split 'train'")
    slides.sort(key=lambda slide: slide.slide_id)
    return Cohort(name or manifest.parent.name, tuple(slides), tuple(labels))


def _read(manifest: Path, labels: Sequence[str]) -> list[_Row]:
    try:
        text = manifest.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{manifest}: no such manifest", remedy="check 'manifest' in site.toml") from None
    except IsADirectoryError:
        raise DataError(f"{manifest}: is a folder", remedy="name the CSV file itself") from None
    except UnicodeDecodeError:
        raise DataError(f"{manifest}: not UTF-8 text", remedy="save it as CSV in UTF-8") from None
    header, _, _ = text.partition("\n")
    # Spreadsheets of many countries write semicolons where others write commas.
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(text.splitlines(), delimiter=delimiter)
    columns = _find_columns(manifest, next(reader, []))
    rows = []
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        place = f"{manifest}, line {reader.line_num}"
        values = {}
        for column, index in columns.items():
            values[column] = cells[index].strip() if index < len(cells) else ""
            if not values[column]:
                raise DataError(f"{place}: '{column}' is empty", remedy="fill the cell or remove the row")
        rows.append(_row(place, reader.line_num, values, labels))
    if not rows:
        raise DataError(f"{manifest}: no rows", remedy="list one slide a row below the header")
    return rows


def _find_columns(manifest: Path, header: list[str]) -> dict[str, int]:
    """Return the index of each known column; 'split' may be absent."""
    names = [cell.strip().lower() for cell in header]
    found = {}
    for column, aliases in _COLUMNS.items():
        alias = next((alias for alias in aliases if alias in names), None)
        if alias is not None:
            found[column] = names.index(alias)
        elif column != "split":
            known = " or ".join(f"'{alias}'" for alias in aliases)
            raise DataError(f"{manifest}: column '{column}' is missing", remedy=f"add a header with {known}")
    return found


def _row(place: str, line: int, values: dict[str, str], labels: Sequence[str]) -> _Row:
    slide_id = values["slide_id"]
    if slide_id.lower().endswith(_EXTENSIONS):
        slide_id = slide_id.rpartition(".")[0]
    # The slide's name becomes a file name; it must not lead out of the features' folder.
    if not slide_id or "/" in slide_id or "\\" in slide_id or slide_id.startswith("."):
        raise DataError(f"{place}: slide_id '{values['slide_id']}' is no plain name", remedy="give the bare slide name")
    if values["label"] not in labels:
        remedy = did_you_mean(values["label"], labels, f"the federation knows: {', '.join(labels)}")
        raise DataError(f"{place}: label '{values['label']}' is not in the vocabulary", remedy=remedy)
    split = None
    if "split" in values:
        split = _SPLIT_NAMES.get(values["split"].lower())
        if split is None:
            raise DataError(f"{place}: split '{values['split']}' is unknown", remedy=f"use {', '.join(SPLITS)}")
    return _Row(line, slide_id, values["patient_id"], labels.index(values["label"]), cast(Split | None, split))


def _refuse_duplicates(manifest: Path, rows: list[_Row]) -> None:
    first: dict[str, int] = {}
    for row in rows:
        if row.slide_id in first:
            raise DataError(
                f"{manifest}, line {row.line}: slide '{row.slide_id}' is already on line {first[row.slide_id]}",
                remedy="keep one row a slide",
            )
        first[row.slide_id] = row.line


def _declared_splits(manifest: Path, rows: list[_Row]) -> dict[str, Split]:
    """Return each patient's split from the split column; a patient in two would leak test data into training."""
    first: dict[str, _Row] = {}
    splits: dict[str, Split] = {}
    for row in rows:
        assert row.split is not None  # the column exists, and empty cells were refused
        other = first.setdefault(row.patient_id, row)
        splits[row.patient_id] = row.split
        if other.split != row.split:
            raise DataError(
                f"{manifest}, line {row.line}: patient '{row.patient_id}' is in '{row.split}' here and in "
                f"'{other.split}' on line {other.line}",
                remedy="keep all slides of a patient in one split",
            )
    return splits
