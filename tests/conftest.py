"""The table of faults: each test of tests/faults adds a line, whichever process it ran in."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_table import PROPERTY, Case, markdown, plain


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the table be written to a file."""
    parser.addoption("--fault-table", type=Path, help="write the table of faults to this file, as Markdown")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table."""
    cases = sorted(_cases(terminalreporter))
    if not cases:
        return
    for line in plain(cases):
        terminalreporter.write_line(line)
    if (path := config.getoption("--fault-table")) is not None:
        path.write_text("\n".join(markdown(cases)) + "\n")


def _cases(terminalreporter: pytest.TerminalReporter) -> Iterator[Case]:
    """What the tests noted; a worker's reports come with what its tests noted."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                for name, values in report.user_properties:
                    if name == PROPERTY:
                        yield Case(*values)
