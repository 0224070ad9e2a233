"""What became of a run after a fault: the lines of the table that the fault suite prints."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

PROPERTY = "fault"
"""Under this name a test's report carries its line."""
_HEAD = ("fault", "state", "recovered after", "result")


class Case(NamedTuple):
    """One line of the table."""

    fault: str
    state: str
    recovered_s: float
    """From the death of what was killed, or the moment when what was taken away is there again, to the end of the next
    round, or of the run."""
    result: str


Note = Callable[[Case], None]
"""Adds a line."""


def plain(cases: Sequence[Case]) -> list[str]:
    """Return the table for a terminal."""
    rows = [_HEAD, *map(_cells, cases)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def markdown(cases: Sequence[Case]) -> list[str]:
    """Return the table for a page of docs/."""
    rows = [_HEAD, ("---",) * len(_HEAD), *map(_cells, cases)]
    return ["| " + " | ".join(row) + " |" for row in rows]


def _cells(case: Case) -> tuple[str, str, str, str]:
    return case.fault, case.state, f"{case.recovered_s:.1f} s", case.result
