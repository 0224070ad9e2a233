"""What ``fedpath cohort check`` says: counts of a cohort and of its clinical table, and no patient's name."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from fedpath.core.cohort import SPLITS, Cohort, load_site_cohort
from fedpath.core.cohort.clinical.fields import STATES
from fedpath.core.cohort.clinical.join import SiteClinical, load_clinical
from fedpath.core.config import FederationConfig, SiteConfig
from fedpath.core.config.clinical import BinaryField, CategoryField, ClinicalField, ClinicalSchema, NumberField

_HEADINGS = {
    "present": "present",
    "missing": "missing",
    "out_of_vocabulary": "out of\nvocabulary",
    "out_of_range": "out of\nrange",
    "not_a_number": "not a\nnumber",
}

_SHOWN = 3
"""Unusable cells of a field that are shown."""


def check(federation: FederationConfig, site: SiteConfig) -> tuple[dict[str, Any], SiteClinical | None]:
    """Load a hospital's cohort and clinical table as a run would, and count.

    Returns:
        What ``--json`` prints, and what it was counted from.

    Raises:
        DataError: the manifest, the table or its mapping is wrong.
    """
    cohort = load_site_cohort(site, federation.task.labels)
    clinical = None
    report: dict[str, Any] = {"site": site.site.name} | _counts(cohort) | {"clinical": None}
    if federation.clinical is None:
        report["note"] = "federation.toml declares no clinical fields" + (
            "; [clinical] of site.toml is not read" if site.clinical is not None else ""
        )
    elif site.clinical is None:
        report["note"] = (
            f"site.toml has no [clinical]: none of the federation's {len(federation.clinical.fields)} clinical fields "
            "is given, and the patients train without them"
        )
    else:
        clinical = load_clinical(site, federation.clinical, cohort)
        columns = {name: mapped.column for name, mapped in site.clinical.columns.items()}
        report["clinical"] = {"table": str(site.clinical.table)} | _clinical(clinical, federation.clinical, columns)
    return report, clinical


def _counts(cohort: Cohort) -> dict[str, Any]:
    """Return slides and patients by split and label; a patient counts for the class that the splits use."""
    classes = cohort.classes()

    def by_label(labels: list[int]) -> dict[str, int]:
        return {word: labels.count(index) for index, word in enumerate(cohort.labels)}

    return {
        "slides": {split: by_label([slide.label for slide in cohort.of(split)]) for split in SPLITS},
        "patients": {split: by_label([classes[patient] for patient in cohort.patients(split)]) for split in SPLITS},
    }


def _clinical(clinical: SiteClinical, schema: ClinicalSchema, columns: Mapping[str, str]) -> dict[str, Any]:
    fields = {
        name: {"column": columns[name], "type": schema.fields[name].type}
        | ({"unit": unit} if (unit := getattr(schema.fields[name], "unit", None)) else {})
        | asdict(counts)
        | {"share_present": counts.present / clinical.with_row}
        for name, counts in clinical.fields.items()
    }
    return {
        "patients": clinical.patients,
        "with_row": clinical.with_row,
        "without_row": clinical.patients - clinical.with_row,
        "empty_rows": clinical.empty_rows,
        "unknown_rows": clinical.unknown_rows,
        "written_otherwise": clinical.written_otherwise,
        "fields": fields,
        "not_mapped": [name for name in schema.fields if name not in fields],
    }


def show(report: Mapping[str, Any], federation: FederationConfig, clinical: SiteClinical | None) -> None:
    """Print a report for people; it fits 80 columns."""
    # Labels, fields and cells are shown as they are: none of them is markup.
    console = Console(highlight=False, markup=False)
    labels = list(report["slides"]["train"])
    slides = sum(map(_total, report["slides"].values()))
    patients = sum(map(_total, report["patients"].values()))
    console.print(f"{report['site']}: {slides} slides of {patients} patients\n")
    table = _table("split", "label")
    for heading in ("slides", "patients"):
        table.add_column(heading, justify="right", no_wrap=True)
    for split in SPLITS:
        for label in labels:
            counts = (report["slides"][split][label], report["patients"][split][label])
            table.add_row(split if label == labels[0] else "", label, *map(str, counts))
    console.print(table)
    console.print()
    if clinical is None or federation.clinical is None:
        console.print(f"No clinical data: {report['note']}.")
    else:
        _show_clinical(console, report["clinical"], federation.clinical)
        _show_unusable(console, clinical)


def _show_clinical(console: Console, clinical: Mapping[str, Any], schema: ClinicalSchema) -> None:
    table = _table("field", "type")
    for state in STATES:
        table.add_column(_HEADINGS[state], justify="right", no_wrap=True)
    table.add_column("share\npresent", justify="right", no_wrap=True)
    for name, field in clinical["fields"].items():
        possible = _possible(schema.fields[name])
        counts = [str(field[state]) if state in possible else "–" for state in STATES]
        unit = f", {field['unit']}" if "unit" in field else ""
        table.add_row(name, field["type"] + unit, *counts, f"{field['share_present']:.0%}")
    console.print(f"Clinical table {clinical['table']}", soft_wrap=True)
    console.print(f"  patients of the manifest: {clinical['with_row']} with a row, {clinical['without_row']} without")
    if clinical["empty_rows"]:
        console.print(f"  rows without any known field: {clinical['empty_rows']} (as if there were no row)")
    if clinical["unknown_rows"]:
        console.print(f"  rows of patients who are not in the manifest: {clinical['unknown_rows']} (not read)")
    if clinical["written_otherwise"]:
        console.print(
            f"  [yellow]patients whom the table seems to write otherwise: {clinical['written_otherwise']}[/yellow] "
            "(leading zeros?)"
        )
    console.print()
    console.print(table)
    console.print()
    if clinical["not_mapped"]:
        console.print(f"Not mapped, and so not read: {', '.join(clinical['not_mapped'])}")
    console.print("What is not present is missing to the model; nothing is filled in.")


def _show_unusable(console: Console, clinical: SiteClinical) -> None:
    """Say where the cells are that somebody may want to correct."""
    for name, cells in clinical.unusable.items():
        if cells:
            places = [f"'{cell.text}' (line {cell.line})" for cell in cells[:_SHOWN]]
            more = f" and {len(cells) - _SHOWN} more" if len(cells) > _SHOWN else ""
            console.print(f"{name}: not usable: {', '.join(places)}{more}")


def _possible(field: ClinicalField) -> tuple[str, ...]:
    """Return the states that cells of a field can have."""
    match field:
        case NumberField():
            return "present", "missing", "out_of_range", "not_a_number"
        case CategoryField() | BinaryField():
            return "present", "missing", "out_of_vocabulary"


def _table(*texts: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for text in texts:
        table.add_column(text, overflow="fold")
    return table


def _total(counts: Mapping[str, int]) -> int:
    return sum(counts.values())
