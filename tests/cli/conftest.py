from pathlib import Path

import pytest
from hospitals import write_hospitals


@pytest.fixture(scope="session")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """federation.toml and two hospitals, A and B; not to be changed."""
    folder = tmp_path_factory.mktemp("hospitals")
    write_hospitals(folder)
    return folder
