"""A federation of real processes for the whole-system tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from federation import Federation


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    """A federation of three small hospitals; every process ends with the test."""
    with Federation(tmp_path, ["A", "B", "C"]) as running:
        yield running
