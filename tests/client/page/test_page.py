"""The hospital's page: what it keeps of the events and of the audit log, and its one button."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browse import Visitor, served

from fedpath.client.audit import AUDIT_FILE, AuditLog
from fedpath.client.page import Page
from fedpath.client.page.app import build
from fedpath.client.page.departures import LINES, Departures
from fedpath.client.page.live import _TAKES, Live
from fedpath.core.config import load_site
from fedpath.core.events import Event, EventLog


@pytest.fixture
def live() -> Live:
    return Live()


def tell(live: Live, kind: str, **values: Any) -> None:
    live(Event(kind, 100.0, values))


def test_an_order_as_it_is_carried_out(live: Live) -> None:
    tell(live, "waiting", reason="nobody is there", wait_s=None)
    assert live.sections()["about"]["connection"] == "waiting"
    tell(live, "joined", federation="lung", address="fl.example:9443")
    tell(live, "order", order="train", run="run-1", round=1, bytes=10)
    tell(live, "validated", round=0, auc=0.5, loss=0.7)
    tell(live, "phase", phase="training")
    assert live.sections()["work"]["says"] == "Training in round 1"
    tell(live, "step", round=1, done=3, total=10, loss=0.6)
    work = live.sections()["work"]
    assert (work["done"], work["total"], work["loss"], work["run"]) == (3, 10, 0.6, "run-1")
    tell(live, "trained", round=1, loss=0.55, seconds=2.0, steps=10, patients={})
    tell(live, "sent", what="update", round=1, bytes=100)
    tell(live, "phase", phase="waiting")
    now = live.sections()
    assert now["rounds"] == [{"round": 1, "loss": 0.55, "seconds": 2.0, "auc": 0.5}]
    assert now["work"]["says"] == "Sent its update; waiting for the next order."
    assert now["work"]["done"] is None
    tell(live, "coordinator_away", reason="no route")
    assert live.sections()["about"] == {
        "connection": "away", "reason": "no route", "federation": "lung", "address": "fl.example:9443",
    }  # fmt: skip
    tell(live, "coordinator_back")
    tell(live, "order_failed", error="a slide is broken", remedy="mend it")
    assert live.sections()["work"]["trouble"] == "a slide is broken"
    for number in range(1, 4):
        tell(live, "trained", round=number, loss=0.5, seconds=1.0)
    tell(live, "validated", round=0, auc=0.4)  # round 1 again: a new run
    assert [round_["round"] for round_ in live.sections()["rounds"]] == [1]


def test_it_stays_small_and_takes_every_event(live: Live) -> None:
    for number in range(1, 2000):
        tell(live, "trained", round=number, loss=0.5, seconds=1.0)
    tell(live, "order_failed", error="x" * 100_000)
    assert len(json.dumps(live.sections())) < 60_000
    for kind in _TAKES:
        tell(live, kind)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "state" / AUDIT_FILE
    audit = AuditLog(path)
    for number in range(LINES + 20):
        kind = "update" if number % 2 else "description"
        audit.record(b"x" * number, to="c:1", run="run-1", kind=kind, round_=number, holds=f"holds {number}")
    return path


def test_what_left_is_summed_and_checked(log: Path) -> None:
    departures = Departures(log)
    left = departures.look()
    assert left["messages"] == LINES + 20
    assert left["bytes"] == sum(range(LINES + 20))
    assert [of["kind"] for of in left["kinds"]] == ["description", "update"]
    assert len(left["last"]) == LINES
    assert left["last"][0]["holds"] == f"holds {LINES + 19}"
    assert left["broken"] is None
    assert departures.look() is left
    AuditLog(log).record(b"yy", to="c:1", run="run-1", kind="receipt", round_=0, holds="nothing")
    assert departures.look()["messages"] == LINES + 21
    log.write_text(log.read_text().replace('"size": 7', '"size": 8'))
    assert "line 8" in departures.look()["broken"]
    assert Departures(log.parent / "none").look()["messages"] == 0


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


@pytest.fixture
def visitor(log: Path, stop: threading.Event, tmp_path: Path) -> Iterator[Visitor]:
    toml = tmp_path / "site.toml"
    toml.write_text('[site]\nname = "A"\n[data]\nmanifest = "manifest.csv"\nfeatures = "features"\n')
    page = Page(load_site(toml), stop, stop.set, lambda event: event.kind)
    EventLog(None, page).emit("joined", federation="lung", address="c:1")
    with served(page, build) as visitor:
        yield visitor


def test_the_button_does_what_ctrl_c_does(visitor: Visitor, stop: threading.Event) -> None:
    assert visitor.sections("about")["connection"] == "joined"
    assert visitor.sections("left")["messages"] == LINES + 20
    own = {"Content-Length": "2", "Content-Type": "application/json"}
    assert visitor.ask("POST", "/api/stop", own | {"Origin": "http://evil.example"}, b"{}")[0] == 403
    assert visitor.ask("GET", "/api/stop")[0] == 405
    assert not stop.is_set()
    status, said = visitor.post("/api/stop", {})
    assert (status, "finished first" in said["says"]) == (200, True)
    assert stop.is_set()
    assert visitor.sections("about")["connection"] == "stopping"
