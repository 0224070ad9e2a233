"""What the hospitals agree on about a clinical field: its mean and spread, from counts and sums and never from rows.

A hospital states n, Σx and Σx² of each number field over its training patients, and how many of them have each word
of a category or binary field. Summed over the hospitals h, these give what the rows of all patients together would:

    μ = Σ_h Σx / Σ_h n        σ = √(Σ_h Σx² / Σ_h n − μ²)        (population standard deviation)

Whatever fewer patients have than the hospital's ``policy.min_patients`` stays there.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from fedpath.core.clinical.record import ClinicalRecord
from fedpath.core.config.clinical import ClinicalField, ClinicalSchema, NumberField, words_of
from fedpath.core.config.loading import Section
from fedpath.core.errors import RefusedError

_ROUNDING = 1e-9
"""Relative error that sums of float64 may have, with a wide margin."""
_NO_SPREAD = 1e-12
"""Below this share of the mean square a variance is what rounding left of 0."""

_Count = Annotated[int, Field(ge=0, le=2**31)]


@dataclass(frozen=True, slots=True)
class Standard:
    """What holds for all hospitals; from the training patients whose hospitals reported a field."""

    patients: int
    """Training patients with a record, at all hospitals together; 0 when nobody has clinical data."""
    mean: Mapping[str, float] = field(default_factory=dict)
    """Of each number field, in its unit. A number field that is absent here is not read by the models."""
    sd: Mapping[str, float] = field(default_factory=dict)
    """Population standard deviation of the same fields; 0 where all patients agree, and then models do not read it."""
    shares: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Of each category and binary field that was reported: the share of each word among the patients who have it."""

    def unread(self, schema: ClinicalSchema) -> tuple[str, ...]:
        """Return the number fields that models do not read: nobody reported them, or all patients have one value."""
        numbers = (name for name, declared in schema.fields.items() if isinstance(declared, NumberField))
        return tuple(name for name in numbers if not self.sd.get(name))


class FieldStatistics(Section):
    """One field at one hospital, over the training patients who have it."""

    count: Annotated[_Count, Field(ge=1)]
    """n."""
    sum: float | None = None
    """Σx of a number, in its unit."""
    sum_squares: float | None = None
    """Σx² of a number."""
    words: Annotated[list[_Count], Field(max_length=100)] | None = None
    """Patients with each word, in the order of ``words_of``; absent when a word has some but too few."""


class ClinicalStatistics(Section):
    """What a hospital states about its training patients' clinical data."""

    patients: Annotated[_Count, Field(ge=1)]
    """Those with a record."""
    fields: dict[str, FieldStatistics]
    """Without those that too few patients have."""


def statistics_of(
    schema: ClinicalSchema, records: Iterable[ClinicalRecord], *, min_patients: int
) -> ClinicalStatistics | None:
    """Return what a hospital may state, or None when too few training patients have a record.

    Args:
        schema: the federation's fields.
        records: one a training patient who has one.
        min_patients: the policy's minimum, at least 1. A field that fewer have is left out, and so are the counts of
            words one of which has some patients but fewer.
    """
    known = list(records)
    if len(known) < max(min_patients, 1):
        return None
    fields = {}
    for index, (name, declared) in enumerate(schema.fields.items()):
        values = [float(record.values_F[index]) for record in known if record.present_F[index]]
        if len(values) >= max(min_patients, 1):
            fields[name] = _field_statistics(declared, values, min_patients)
    return ClinicalStatistics(patients=len(known), fields=fields)


def _field_statistics(declared: ClinicalField, values: Sequence[float], min_patients: int) -> FieldStatistics:
    if isinstance(declared, NumberField):
        squares = math.fsum(value * value for value in values)
        return FieldStatistics(count=len(values), sum=math.fsum(values), sum_squares=squares)
    words = [values.count(index) for index in range(len(words_of(declared)))]
    enough = all(count == 0 or count >= min_patients for count in words)
    return FieldStatistics(count=len(values), words=words if enough else None)


def agree(schema: ClinicalSchema, statistics: Iterable[ClinicalStatistics]) -> Standard:
    """Put the hospitals' statistics together; see the module's docstring for the formula.

    The order of the hospitals changes nothing, to the bit. Statistics that came from elsewhere go through
    ``check_statistics`` first.

    Args:
        schema: the federation's fields.
        statistics: one a hospital that has clinical data.
    """
    stated = list(statistics)
    mean, sd, shares = {}, {}, {}
    for name, declared in schema.fields.items():
        reports = [one.fields[name] for one in stated if name in one.fields]
        if isinstance(declared, NumberField):
            if reports:
                mean[name], sd[name] = _moments(reports)
            continue
        counts = [report.words for report in reports if report.words is not None]
        if counts:
            totals = [sum(column) for column in zip(*counts, strict=True)]
            shares[name] = tuple(total / sum(totals) for total in totals)
    return Standard(sum(one.patients for one in stated), mean, sd, shares)


def _moments(reports: Sequence[FieldStatistics]) -> tuple[float, float]:
    """Return mean and population standard deviation over all patients of all reports."""
    count = sum(report.count for report in reports)
    mean = math.fsum(report.sum or 0.0 for report in reports) / count
    mean_square = math.fsum(report.sum_squares or 0.0 for report in reports) / count
    variance = mean_square - mean * mean
    # A field on which all patients agree has no spread; the root of its rounding error would blow the field up.
    return mean, math.sqrt(variance) if variance > _NO_SPREAD * mean_square else 0.0


def check_statistics(schema: ClinicalSchema, statistics: ClinicalStatistics) -> None:
    """Refuse what no patients can have given, before it enters what all hospitals use.

    For n numbers within [a, b]: n·a ≤ Σx ≤ n·b, and (Σx)²/n ≤ Σx² ≤ (a + b)·Σx − n·a·b (each x has (x−a)(b−x) ≥ 0).

    Raises:
        RefusedError: naming the field and what is impossible about it.
    """
    for name, stated in statistics.fields.items():
        declared = schema.fields.get(name)
        if declared is None:
            fault = "the schema has no such field"
        elif stated.count > statistics.patients:
            fault = f"{stated.count} of {statistics.patients} patients have it"
        elif isinstance(declared, NumberField):
            fault = _fault_of_number(declared, stated)
        else:
            fault = _fault_of_words(declared, stated)
        if fault:
            raise RefusedError(
                f"clinical statistics of '{name[:64]}' are impossible: {fault}",
                remedy="run `fedpath cohort check` at that hospital, and the same version of fedpath everywhere",
            )


def _fault_of_number(declared: NumberField, stated: FieldStatistics) -> str:
    if stated.sum is None or stated.sum_squares is None or stated.words is not None:
        return "a number has a sum and a sum of squares, and no words"
    n, low, high = stated.count, declared.minimum, declared.maximum
    slack = _ROUNDING * n * max(abs(low), abs(high))
    if not n * low - slack <= stated.sum <= n * high + slack:
        return f"a mean of {stated.sum / n:g} outside {low:g} to {high:g} {declared.unit}"
    least, most = stated.sum * stated.sum / n, (low + high) * stated.sum - n * low * high
    slack *= max(abs(low), abs(high))
    if not least - slack <= stated.sum_squares <= most + slack:
        return "a spread that no values of the range have"
    return ""


def _fault_of_words(declared: ClinicalField, stated: FieldStatistics) -> str:
    if stated.sum is not None or stated.sum_squares is not None:
        return "words have no sum"
    if stated.words is None:
        return ""
    if len(stated.words) != len(words_of(declared)):
        return f"{len(stated.words)} counts for {len(words_of(declared))} words"
    if sum(stated.words) != stated.count:
        return f"words of {sum(stated.words)} patients where {stated.count} have one"
    return ""
