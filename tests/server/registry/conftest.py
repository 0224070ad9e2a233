"""A finished run of three hospitals in one process, which tests copy."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from in_process import Sites, write_sites

from fedpath.core.config import FederationConfig
from fedpath.core.events import EventLog
from fedpath.server.execute import execute
from fedpath.server.runs import open_run

CONFIG: dict[str, Any] = {
    "federation": {"name": "test", "sites": ["A", "B", "C"]},
    "server": {"address": "localhost:1", "grace_s": 0.0, "min_sites": 2, "join_timeout_s": 1.0},
    "task": {"labels": ["normal", "tumour"]},
    "features": {"encoder": "noise", "width": 8, "mpp": 0.5, "patch_px": 128},
    "model": {"name": "acmil", "options": {"inner": 4, "attention": 4}},
    "training": {"rounds": 2, "learning_rate": 0.01},
    "deadline": {"quorum_wait_s": 0.0},
}


def config_with(**changes: Any) -> FederationConfig:
    return FederationConfig.model_validate(CONFIG | changes)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A coordinator's folder with one finished run, not in any registry; not to be changed."""
    folder = tmp_path_factory.mktemp("served")
    write_sites(folder, "ABC")
    config, state = config_with(), folder / "coordinator"
    run = open_run(config, state, new=False)
    execute(config, run.name, run.folder, Sites(folder, "ABC"), EventLog(), threading.Event())
    return state


@pytest.fixture
def state(served: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(served, tmp_path / "coordinator")


@pytest.fixture
def make_config() -> Callable[..., FederationConfig]:
    return config_with
