"""What the tests of a coordinator and its sites in one process share."""

from pathlib import Path

import pytest
from in_process import write_sites


@pytest.fixture
def nobody_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites here are there or gone: a coordinator need not wait until they have noticed that it is back."""
    monkeypatch.setattr("fedpath.server.gather._RETURN_S", 0.0)


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three hospitals."""
    folder = tmp_path_factory.mktemp("hospitals")
    write_sites(folder, ("A", "B", "C"))
    return folder
