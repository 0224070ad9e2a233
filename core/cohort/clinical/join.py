"""A hospital's clinical table, joined with its manifest by patient: records for training, counts for people.

Faults of single cells are counted states. What makes a whole table or column untrustworthy is an error: no patient in
common, a patient twice, the label offered as a field, a column most of whose cells cannot be used. These errors name
patients and cells; they are for the hospital's own screen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from fedpath.core.clinical.record import ClinicalRecord
from fedpath.core.cohort.clinical.fields import STATES, UNUSABLE, FieldReader, Reading, State
from fedpath.core.cohort.clinical.table import TableRow, TextTable, read_clinical
from fedpath.core.cohort.manifest import Cohort
from fedpath.core.config.clinical import ClinicalSchema, ClinicalSection, NumberField, plain, words_of
from fedpath.core.config.site import SiteConfig
from fedpath.core.errors import DataError, did_you_mean

_LABEL_COLUMN = "label"
"""Of the manifest; a table that was joined with it carries the name along."""
_LEAK_PATIENTS, _LEAK_CLASS = 10, 2
"""From so many patients, and so many of each class, on a field that mirrors the label is no coincidence."""


@dataclass(frozen=True, slots=True)
class FieldCounts:
    """How many of the manifest's patients with a row have a field in which state."""

    present: int = 0
    missing: int = 0
    out_of_vocabulary: int = 0
    out_of_range: int = 0
    not_a_number: int = 0

    @property
    def filled(self) -> int:
        """Cells that say something."""
        return self.present + self.unusable

    @property
    def unusable(self) -> int:
        """Cells that say something which the field does not know."""
        return self.out_of_vocabulary + self.out_of_range + self.not_a_number


@dataclass(frozen=True, slots=True)
class Cell:
    """One patient's field in the table."""

    line: int
    text: str
    reading: Reading

    @property
    def meaning(self) -> tuple[State, float | str]:
        """What two cells share that say the same."""
        state = self.reading.state
        return state, plain(self.text) if state in UNUSABLE else self.reading.value


@dataclass(frozen=True, slots=True)
class SiteClinical:
    """What a hospital's table says about the patients of its manifest."""

    patients: int
    """In the manifest."""
    records: dict[str, ClinicalRecord] = field(default_factory=dict)
    """By patient: of those of whom at least one field is known."""
    fields: dict[str, FieldCounts] = field(default_factory=dict)
    """Of the mapped fields, in the schema's order."""
    with_row: int = 0
    """Patients of the manifest who stand in the table."""
    empty_rows: int = 0
    """Of these: in whose rows no field is known. They have no record."""
    unknown_rows: int = 0
    """Rows of patients who are not in the manifest."""
    written_otherwise: int = 0
    """Patients of the manifest without a row whom the table seems to write otherwise: leading zeros, case, spaces."""
    unusable: dict[str, list[Cell]] = field(default_factory=dict)
    """Of each field, the cells that were counted as unusable; for the hospital's own screen only."""


def load_clinical(site: SiteConfig, schema: ClinicalSchema, cohort: Cohort) -> SiteClinical:
    """Read and check the clinical table that site.toml names; without one, nobody has a record.

    Args:
        site: the hospital's configuration.
        schema: the federation's fields.
        cohort: the hospital's slides; only their patients are read.

    Raises:
        DataError: the table, its mapping, or both are wrong; see the module's docstring.
    """
    classes = cohort.classes()
    if site.clinical is None:
        return SiteClinical(len(classes))
    readers = _readers(site.clinical, schema)
    table = read_clinical(site.clinical.table, sheet=site.clinical.sheet, decimal=site.clinical.decimal)
    at = _Columns.of(table, site.clinical)
    rows_of = _rows_of(table, at.patient)
    _refuse_strangers(table, rows_of, sorted(classes))
    joined = sorted(classes.keys() & rows_of.keys())
    for patient in joined:
        _refuse_second_row(table, patient, rows_of[patient], readers, at)
    cells = {
        name: {patient: _cell(rows_of[patient][0], at.fields[name], read) for patient in joined}
        for name, read in readers.items()
    }
    counts = {name: _counts(column.values()) for name, column in cells.items()}
    for name, column in cells.items():
        _refuse_label(table, name, at.headings[name], column, classes)
        _refuse_unusable(table, name, counts[name], site.clinical, readers[name], column.values())
    records = {
        patient: record
        for patient in joined
        if (record := _record([cells[name][patient] if name in cells else None for name in schema.fields])) is not None
    }
    return SiteClinical(
        patients=len(classes),
        records=records,
        fields=counts,
        with_row=len(joined),
        empty_rows=len(joined) - len(records),
        unknown_rows=sum(len(rows) for patient, rows in rows_of.items() if patient not in classes),
        written_otherwise=_written_otherwise(classes.keys() - rows_of.keys(), rows_of.keys() - classes.keys()),
        unusable={
            name: sorted((cell for cell in column.values() if cell.reading.state in UNUSABLE), key=lambda c: c.line)
            for name, column in cells.items()
        },
    )


def _written_otherwise(without_row: Iterable[str], unknown: Iterable[str]) -> int:
    """Count the patients whose name is in the table but for what spreadsheets drop."""
    written = {_bare(name) for name in unknown}
    return sum(_bare(patient) in written for patient in without_row)


def _bare(name: str) -> str:
    return plain(name).replace(" ", "").lstrip("0")


def _cell(row: TableRow, column: int, read: FieldReader) -> Cell:
    return Cell(row.line, row.cells[column], read(row.cells[column]))


def _record(cells: Sequence[Cell | None]) -> ClinicalRecord | None:
    """Return a patient's record from the cells of all fields in the schema's order; None when no field is known."""
    present = [cell is not None and cell.reading.state == "present" for cell in cells]
    if not any(present):
        return None
    values = [0.0 if cell is None else cell.reading.value for cell in cells]
    return ClinicalRecord(torch.tensor(values, dtype=torch.float64), torch.tensor(present))


def _counts(cells: Iterable[Cell]) -> FieldCounts:
    count = Counter(cell.reading.state for cell in cells)
    return FieldCounts(**{state: count[state] for state in STATES})


# --- where things stand -----------------------------------------------------------------------------------------------


def _readers(section: ClinicalSection, schema: ClinicalSchema) -> dict[str, FieldReader]:
    """Return a reader for each mapped field, in the schema's order."""
    for name in section.columns:
        if name not in schema.fields:
            raise DataError(
                f"site.toml: key 'clinical.columns.{name}': the federation declares no such field",
                remedy=did_you_mean(name, schema.fields, f"the federation declares: {', '.join(schema.fields)}"),
            )
    return {
        name: FieldReader.of(name, declared, section.columns[name], decimal=section.decimal, missing=section.missing)
        for name, declared in schema.fields.items()
        if name in section.columns
    }


@dataclass(frozen=True, slots=True)
class _Columns:
    """Positions in the table."""

    patient: int
    fields: dict[str, int]
    headings: dict[str, str]

    @classmethod
    def of(cls, table: TextTable, section: ClinicalSection) -> _Columns:
        fields = {name: _position(table, one.column, f"columns.{name}") for name, one in section.columns.items()}
        headings = {name: table.header[column] for name, column in fields.items()}
        return cls(_position(table, section.patient_column, "patient_column"), fields, headings)


def _position(table: TextTable, heading: str, key: str) -> int:
    """Return the index of a column by its heading: as it is written, else without regard to case and spaces."""
    exact = [index for index, name in enumerate(table.header) if name == heading.strip()]
    found = exact or [index for index, name in enumerate(table.header) if plain(name) == plain(heading)]
    if len(found) > 1:
        raise DataError(f"{table.path}: {len(found)} columns are headed '{heading}'", remedy="rename all but one")
    if not found:
        names = [name for name in table.header if name]
        remedy = did_you_mean(heading, names, f"the table has: {_some(names)}")
        raise DataError(f"{table.path}: no column '{heading}' (clinical.{key} in site.toml)", remedy=remedy)
    return found[0]


def _rows_of(table: TextTable, patient_column: int) -> dict[str, list[TableRow]]:
    rows_of: dict[str, list[TableRow]] = {}
    for row in table.rows:
        if not row.cells[patient_column]:
            raise DataError(
                f"{table.path}, line {row.line}: '{table.header[patient_column]}' is empty",
                remedy="name the patient, or remove the row (of totals, of remarks)",
            )
        rows_of.setdefault(row.cells[patient_column], []).append(row)
    return rows_of


# --- what is an error -------------------------------------------------------------------------------------------------


def _refuse_strangers(table: TextTable, rows_of: Mapping[str, object], patients: Sequence[str]) -> None:
    """Refuse a table of other patients, or of patients who are written otherwise."""
    if not any(patient in rows_of for patient in patients):
        raise DataError(
            f"{table.path}: no patient in common with the manifest: {len(rows_of)} patients here (such as "
            f"'{min(rows_of)}'), {len(patients)} there (such as '{patients[0]}')",
            remedy="check clinical.patient_column in site.toml, and write patients alike in both (leading zeros?)",
        )


def _refuse_second_row(
    table: TextTable, patient: str, rows: Sequence[TableRow], readers: Mapping[str, FieldReader], at: _Columns
) -> None:
    """Refuse a patient's second row: which one is right, or whether there are two patients, is not ours to guess."""
    if len(rows) == 1:
        return
    first, other = rows[:2]
    where = f"{table.path}, line {other.line}: patient '{patient}'"
    for name, read in readers.items():
        one, two = (_cell(row, at.fields[name], read) for row in (first, other))
        if one.meaning != two.meaning:
            raise DataError(
                f"{where}: contradiction: '{at.headings[name]}' ({name}) is '{two.text}' here and '{one.text}' on line "
                f"{one.line}",
                remedy="keep the row that is right",
            )
    raise DataError(f"{where}: duplicate: already on line {first.line}", remedy="keep one row a patient")


def _refuse_label(
    table: TextTable, name: str, heading: str, column: Mapping[str, Cell], classes: Mapping[str, int]
) -> None:
    """Refuse a column that is the label: by its name, or because each of its values belongs to one class and back."""
    where = f"{table.path}: column '{heading}' ({name})"
    remedy = f"take '{name}' out of [clinical.columns] in site.toml"
    if plain(heading) == _LABEL_COLUMN:
        raise DataError(f"{where} is named as the manifest's label, which is to be predicted", remedy=remedy)
    pairs = Counter(
        (cell.meaning, classes[patient]) for patient, cell in column.items() if cell.reading.state != "missing"
    )
    one_to_one = len(pairs) == len({meaning for meaning, _ in pairs}) == len({label for _, label in pairs})
    if one_to_one and len(pairs) > 1 and pairs.total() >= _LEAK_PATIENTS and min(pairs.values()) >= _LEAK_CLASS:
        raise DataError(
            f"{where} is the label in other words: of all {pairs.total()} patients who have it, each value belongs to "
            "one label and each label to one value",
            remedy=remedy,
        )


def _refuse_unusable(
    table: TextTable,
    name: str,
    counts: FieldCounts,
    section: ClinicalSection,
    read: FieldReader,
    cells: Iterable[Cell],
) -> None:
    """Refuse a column of which too much cannot be used: then it is the mapping that is wrong, not single cells."""
    if counts.unusable <= section.max_unusable * counts.filled:
        return
    kinds = {state: count for state in UNUSABLE if (count := getattr(counts, state))}
    worst = max(kinds, key=lambda state: kinds[state])
    offending = sorted({cell.text for cell in cells if cell.reading.state == worst})
    said = ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in kinds.items())
    raise DataError(
        f"{table.path}: column '{section.columns[name].column}' ({name}): {counts.unusable} of {counts.filled} filled "
        f"cells cannot be used: {said}, such as {_some([repr(text) for text in offending])}",
        remedy=_remedy(name, worst, read, offending),
    )


def _remedy(name: str, worst: State, read: FieldReader, offending: Iterable[str]) -> str:
    """Return the likely reason for a column of unusable cells."""
    declared, key = read.field, f"clinical.columns.{name}"
    match declared, worst:
        case NumberField(), "out_of_range":
            expected = f"{declared.minimum:g} to {declared.maximum:g} {declared.unit}"
            return f"the federation expects {expected}: if the column has another unit, set {key}.factor in site.toml"
        case NumberField(), _:
            other = replace(read, decimal="," if read.decimal == "." else ".")
            if any(other(text).state != "not_a_number" for text in offending):
                return (
                    f"numbers are read with '{read.decimal}': set clinical.decimal = '{other.decimal}' in site.toml, "
                    "or map another column"
                )
            return (
                "write plain numbers in that column (no unit, percent sign, date, or separator of thousands), or map "
                "another"
            )
        case _:
            return f"say in {key}.codes of site.toml which of them means which of: {', '.join(words_of(declared))}"


def _some(words: Sequence[str], most: int = 5) -> str:
    """Return the first few of a list."""
    return ", ".join(words[:most]) + (", …" if len(words) > most else "")
