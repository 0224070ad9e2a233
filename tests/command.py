"""The `fedpath` command, run inside the test process."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedpath.cli.main import main


def federation_of_tables(width: int) -> str:
    """A federation.toml whose features come from a table of bags."""
    return f"""
[federation]
name = "small"
sites = ["A", "B"]
[server]
address = "localhost:8443"
[task]
labels = ["no", "yes"]
[features]
encoder = "table"
width = {width}
"""


@dataclass
class Run:
    code: int
    out: str
    err: str

    def assert_error(self, code: int, *words: str) -> None:
        """Exactly two lines, on stderr: what is wrong, and the remedy."""
        assert self.code == code, self.err
        error, remedy = self.err.splitlines()
        assert error.startswith("error: ")
        assert remedy.startswith("remedy: ")
        for word in words:
            assert word in self.err


def fedpath(*arguments: str | Path, environment: dict[str, str] | None = None) -> Run:
    """Run the command as its entry point does, in this process: starting one costs seconds of imports."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["fedpath", *map(str, arguments)])
        patch.setenv("COLUMNS", "200")
        # Set first, so that whatever the command itself puts there is undone as well.
        patch.setenv("FEDPATH_DEBUG", "")
        patch.delenv("FEDPATH_DEBUG")
        for name, value in (environment or {}).items():
            patch.setenv(name, value)
        try:
            main()
            code = 0
        except SystemExit as done:
            code = int(done.code or 0)
    return Run(code, out.getvalue(), err.getvalue())
