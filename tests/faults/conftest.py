"""A federation whose processes are killed, and the table of what became of it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_cases import Whole, configure, whole_run
from fault_table import PROPERTY, Note
from federation import Federation


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    """Three small hospitals that all have to answer; every process ends with the test."""
    with Federation(tmp_path, ["A", "B", "C"]) as running:
        configure(running)
        yield running


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """What a run that nobody disturbs ends with."""
    with Federation(tmp_path_factory.mktemp("undisturbed"), ["A", "B", "C"]) as running:
        configure(running)
        ended = whole_run(running)
    # Nobody was missing from it: what is equal to it has lost no update.
    assert ended.counted == {site: [1, 2, 3] for site in "ABC"}
    return ended


@pytest.fixture
def note(record_property: Callable[[str, object], None]) -> Note:
    """Adds a line to the table (tests/conftest.py)."""
    return lambda case: record_property(PROPERTY, list(case))
