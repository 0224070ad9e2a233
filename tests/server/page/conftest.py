"""A coordinator's page over a finished run of three hospitals in one process."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from browse import Visitor, served
from in_process import Sites, write_sites

from fedpath.core.config import load_federation
from fedpath.core.events import Event, EventLog
from fedpath.server.execute import execute
from fedpath.server.page import Page
from fedpath.server.page.app import build
from fedpath.server.registry import Registry
from fedpath.server.registry.index import index_folders
from fedpath.server.runs import open_run

TOML = """
[federation]
name = "test"
sites = ["A", "B", "C"]
[server]
address = "localhost:8443"
grace_s = 0.0
registry = "sqlite:///SECRET"
[task]
labels = ["normal", "tumour"]
[features]
encoder = "noise"
width = 8
mpp = 0.5
patch_px = 128
[model]
options = { inner = 4, attention = 4 }
[training]
rounds = 2
learning_rate = 0.01
"""


@dataclass
class Coordinator:
    """What the tests use."""

    state: Path
    page: Page
    events: EventLog
    visitor: Visitor

    @property
    def registry(self) -> Registry:
        return Registry.open(self.state)


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    """One that has finished a run, and serves its queue as far as its events say."""
    folder = tmp_path_factory.mktemp("page")
    write_sites(folder, "ABC")
    file, state = folder / "federation.toml", folder / "coordinator"
    file.write_text(TOML.replace('registry = "sqlite:///SECRET"\n', ""))
    config = load_federation(file)
    run = open_run(config, state, new=False)
    execute(config, run.name, run.folder, Sites(folder, "ABC"), EventLog(), threading.Event())
    file.write_text(TOML)  # as its operator has it: with the registry's URL
    index_folders(Registry.open(state), state / "runs")
    page = Page(config, file, state, "serve", _words)
    events = EventLog(None, page)
    with served(page, build) as visitor:
        events.emit("serving", address="localhost:8443", parallel=1, waiting=0)
        yield Coordinator(state, page, events, visitor)


def _words(event: Event) -> str | None:
    said: Any = event.values.get("reason")
    return None if said is None else f"{event.kind}: {said}"
