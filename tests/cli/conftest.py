from pathlib import Path

import pytest
from hospitals import write_clinical_hospitals, write_hospitals


@pytest.fixture(scope="session")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """federation.toml and two hospitals, A and B; not to be changed."""
    folder = tmp_path_factory.mktemp("hospitals")
    write_hospitals(folder)
    return folder


@pytest.fixture(scope="session")
def clinical_hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same under a model of clinical data: A has a table with holes, B has none; not to be changed."""
    folder = tmp_path_factory.mktemp("clinical")
    write_clinical_hospitals(folder)
    return folder
