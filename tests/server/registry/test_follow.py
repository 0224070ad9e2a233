"""A run that is served and its row: requests are heard, and the registry may be away, emptied or replaced meanwhile."""

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedpath.core.errors import FederationError, StoppedError
from fedpath.core.events import Event, EventLog
from fedpath.server.registry import Registry, RegistryAwayError
from fedpath.server.registry.database import connected
from fedpath.server.registry.follow import Follower
from fedpath.server.registry.index import index_folders
from fedpath.server.registry.record import read_record
from fedpath.server.registry.requests import stop


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def follower(state: Path, events: list[Event]) -> Follower:
    """Of a run that has its two rounds, and not its end."""
    (folder,) = (state / "runs").iterdir()
    (folder / "summary.json").unlink()
    registry = Registry.open(state)
    index_folders(registry, state / "runs")
    (run,) = registry.runs()
    made = Follower(registry, run, folder, EventLog(None, events.append), threading.Event())
    assert made.begin()
    return made


@contextmanager
def away(registry: Registry) -> Iterator[None]:
    """The database cannot be reached."""
    with pytest.MonkeyPatch.context() as patch:

        def fail(*_: object, **__: object) -> None:
            raise RegistryAwayError("db: cannot be used", remedy="wait")

        patch.setattr(registry, "_session", fail)
        yield


def test_a_request_to_stop_is_heard_once(follower: Follower) -> None:
    follower.look()
    assert not follower.stop.is_set()
    stop(follower.registry, follower.registry.find("latest"))
    follower.look()
    assert follower.stop.is_set()
    follower.end(StoppedError(), requeue=True)  # the coordinator ends at the same time: somebody wanted it stopped
    assert follower.registry.find("latest").state == "stopped"


@pytest.mark.parametrize(
    ("error", "requeue", "becomes", "code"),
    [
        (None, False, "finished", 0),
        (StoppedError(), False, "stopped", 130),
        (StoppedError(), True, "queued", None),
        (FederationError("too few", remedy="more"), True, "failed", 6),
        (ZeroDivisionError("a mistake"), False, "failed", 1),
    ],
)
def test_what_became_of_it(
    follower: Follower, error: BaseException | None, requeue: bool, becomes: str, code: int | None
) -> None:
    assert follower.end(error, requeue=requeue)
    run, record = follower.registry.find("latest"), read_record(follower.folder)
    assert record is not None
    assert (run.state, run.exit_code) == (record.state, record.exit_code) == (becomes, code)


def test_the_registry_may_be_away(follower: Follower, events: list[Event], state: Path) -> None:
    with away(follower.registry):
        follower.look()
        follower.look()
        assert not follower.end(FederationError("too few", remedy="more"))
    assert [event.kind for event in events] == ["run_taken_up", "registry_away", "run_over"]
    assert follower.registry.find("latest").state == "running"
    index_folders(follower.registry, state / "runs")
    run = follower.registry.find("latest")
    assert (run.state, run.error) == ("failed", "too few")


def test_it_may_be_back_in_time(follower: Follower, events: list[Event]) -> None:
    with away(follower.registry):
        follower.look()
    follower.look()
    assert [event.kind for event in events] == ["run_taken_up", "registry_away", "registry_back"]


def test_a_database_that_was_emptied_is_filled_again(follower: Follower) -> None:
    with connected(follower.registry._engine, writes=True) as connection:
        connection.exec_driver_sql("DELETE FROM runs")
    follower.look()
    run = follower.registry.find("latest")
    assert (run.state, run.done) == ("running", 2)
    assert len(follower.registry.history(run).rounds) == 2
    assert follower.end(None)
    assert follower.registry.find("latest").state == "finished"


def test_a_database_that_was_replaced_by_an_older_copy_is_brought_up(follower: Follower, state: Path) -> None:
    follower.registry.change(follower.run, revision=0, state="queued")
    follower.run.revision, follower.run.state = 7, "running"
    follower.look()
    run = follower.registry.find("latest")
    assert (run.state, run.revision) == ("running", 7)


def test_a_run_that_was_taken_out_of_the_queue_does_not_begin(follower: Follower) -> None:
    follower.end(StoppedError(), requeue=True)
    stop(follower.registry, follower.registry.find("latest"))
    assert not follower.begin(["queued"])


def test_the_folder_of_another_run_is_not_taken_for_it(state: Path) -> None:
    """Each run's folder is found by its name; a copy beside it is a run of its own."""
    (folder,) = (state / "runs").iterdir()
    shutil.copytree(folder, folder.with_name("20300101-000000"))
    registry = Registry.open(state)
    assert index_folders(registry, state / "runs") == []
    assert sorted(run.run for run in registry.runs()) == sorted([folder.name, "20300101-000000"])
    assert json.loads((folder / "run.json").read_text())["run"]
