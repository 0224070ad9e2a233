"""A federation whose processes are killed, and the table of what became of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_cases import Case, Whole, configure, print_table, whole_run
from federation import Federation

CASES = pytest.StashKey[list[Case]]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin the table."""
    config.stash[CASES] = []


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
        return whole_run(running)


@pytest.fixture
def cases(request: pytest.FixtureRequest) -> list[Case]:
    """The table, to be added to."""
    return request.config.stash[CASES]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table."""
    print_table(config.stash[CASES], terminalreporter.write_line)
