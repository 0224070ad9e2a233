"""Which run of the queue begins next, and what the others wait for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedpath.core.config import FederationConfig
from fedpath.core.errors import ConfigError
from fedpath.server.queue import choose
from fedpath.server.registry import Registry, Run
from fedpath.server.registry.index import index_folders, new_row
from fedpath.server.registry.record import now
from fedpath.server.registry.requests import resume, stop, submit
from fedpath.server.registry.tables import Coordinator

CONFIG: dict[str, Any] = {
    "federation": {"name": "test", "sites": ["A", "B", "C"]},
    "server": {"address": "localhost:1", "min_sites": 2},
    "task": {"labels": ["normal", "tumour"]},
    "features": {"encoder": "noise", "width": 8},
}


def config_with(**changes: Any) -> FederationConfig:
    return FederationConfig.model_validate(CONFIG | changes)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path)


@pytest.fixture
def put(registry: Registry, tmp_path: Path) -> Callable[..., Run]:
    return lambda **more: submit(registry, config_with(), tmp_path / "runs", **more)


def coordinator(**more: Any) -> Coordinator:
    values = {"federation": "test", "sites": ["A", "B", "C"], "address": "localhost:1", "listen": None}
    values |= {"credentials": "/credentials", "parallel": 1, "state_folder": "/state", "seen": now()}
    return Coordinator(**values | more)


def test_priority_then_submission_and_what_has_begun_first(registry: Registry, put: Callable[..., Run]) -> None:
    first, second, urgent = put(), put(), put(priority=1)
    assert [run.id for run in registry.queue("test")] == [urgent.id, first.id, second.id]
    registry.change(second, started=now())
    assert [run.id for run in registry.queue("test")] == [second.id, urgent.id, first.id]


def rows(*names: str, **more: Any) -> list[Run]:
    made = [new_row(config_with(), name, folder=None, **more) for name in names]
    for number, run in enumerate(made, 1):
        run.id = number
    return made


def test_the_first_begins_and_the_others_know_their_place() -> None:
    queue = rows("one", "two", "three")
    choice = choose(queue, {}, [], 1, {})
    assert choice.begin is queue[0]
    assert choice.waits == {2: "place 2 in the queue", 3: "place 3 in the queue"}
    assert choose([], {}, [], 1, {}).begin is None


def test_one_after_the_other() -> None:
    queue = rows("one", "two")
    choice = choose(queue, {}, ["zero"], 1, {})
    assert (choice.begin, choice.waits[1]) == (None, "next, after zero")


def test_side_by_side_only_with_enough_hospitals_and_nothing_overtakes() -> None:
    queue = rows("one", "two")
    assert choose(queue, {}, ["zero"], 2, {"A": ["zero"]}).begin is queue[0]
    busy = {"A": ["zero"], "B": ["zero"]}
    choice = choose(queue, {}, ["zero"], 2, busy)
    assert choice.begin is None
    assert choice.waits[1] == ("needs 2 hospitals, whose policies leave 1: A takes part in zero; B takes part in zero")
    # Alone, it begins and waits for hospitals as any run does.
    assert choose(queue, {}, [], 2, busy).begin is queue[0]


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("running", "waits for run zero"),
        ("failed", "waits for run zero, which has failed: resume that one"),
        ("stopped", "waits for run zero, which has been stopped: resume that one"),
        (None, "waits for run zero, which is not in the registry"),
    ],
)
def test_a_run_that_waits_for_another_is_passed_over(state: str | None, says: str) -> None:
    queue = rows("one", "two")
    queue[0].after = "zero"
    choice = choose(queue, {} if state is None else {"zero": state}, [], 1, {})
    assert (choice.begin, choice.waits[1]) == (queue[1], says)
    assert choose(queue, {"zero": "finished"}, [], 1, {}).begin is queue[0]


def test_names_are_unique_and_labels_too(registry: Registry, put: Callable[..., Run]) -> None:
    runs = [put(label=f"run-{number}") for number in range(5)]
    assert len({run.run for run in runs}) == 5
    assert registry.find("run-3").run == runs[3].run
    assert registry.find("latest").run == runs[4].run
    with pytest.raises(ConfigError, match="called so already"):
        put(label="run-3")


def test_a_queue_is_made_again_from_the_folders(registry: Registry, put: Callable[..., Run], tmp_path: Path) -> None:
    put(label="one")
    put(label="two", priority=3)
    stopped = put(label="three")
    stop(registry, stopped)
    registry.close()
    for path in tmp_path.glob("registry.db*"):
        path.unlink()
    again = Registry.open(tmp_path)
    assert index_folders(again, tmp_path / "runs") == []
    assert [(run.label, run.state, run.priority) for run in again.runs()] == [
        ("one", "queued", 0),
        ("two", "queued", 3),
        ("three", "stopped", 0),
    ]


def test_stop_and_resume(registry: Registry, put: Callable[..., Run]) -> None:
    run = put()
    assert "out of the queue" in stop(registry, run)
    with pytest.raises(ConfigError, match="is stopped: there is nothing to stop") as caught:
        stop(registry, run)
    assert "fedpath run resume" in caught.value.remedy
    assert "in the queue again" in resume(registry, run)
    with pytest.raises(ConfigError, match="is queued: there is nothing to resume"):
        resume(registry, run)
    registry.move(run, ["queued"], "running")
    assert "is asked to stop" in stop(registry, run)
    assert "is stopping already" in stop(registry, run)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"federation": {"name": "other", "sites": ["A", "B", "C"]}}, "federation.name"),
        ({"federation": {"name": "test", "sites": ["A", "B"]}}, "federation.sites"),
        ({"server": {"address": "localhost:2"}}, "server.address"),
        ({"server": {"address": "localhost:1", "listen": "localhost:7"}}, "server.listen"),
        ({"server": {"address": "localhost:1", "credentials": Path("elsewhere")}}, "server.credentials"),
    ],
)
def test_a_run_of_another_coordinator_is_refused_by_name(
    registry: Registry, tmp_path: Path, changes: dict[str, Any], key: str
) -> None:
    registry.keep_coordinator(coordinator())
    with pytest.raises(ConfigError, match=key):
        submit(registry, config_with(**changes), tmp_path / "runs")
    assert registry.runs() == []
    assert not (tmp_path / "runs").exists()
    submit(registry, config_with(training={"rounds": 3}), tmp_path / "runs")


def test_whether_somebody_serves_the_queue(registry: Registry) -> None:
    assert not registry.is_served("test")
    registry.keep_coordinator(coordinator())
    assert registry.is_served("test")
