"""The cable of one hospital is pulled and put in again, while it trains or uploads.

For a moment is until something is stuck in it: nobody notices but TCP. For longer is until the coordinator gives the
site up: when two heartbeats are missed, or, in the middle of an upload, when Flower's state has waited 180 s for the
next piece.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_cases import DEADLINE_S, Whole, configure, finish, recovered_after, round_done
from fault_hooks import held_upload
from fault_table import Case, Note
from federation import Federation, wait_until
from namespaces import HUB, Cable, cable, needs_root

from fedpath.core.events import EventReader

pytestmark = [pytest.mark.faults, needs_root]
short = pytest.mark.system


@pytest.fixture
def wire() -> Iterator[Cable]:
    """The coordinator and hospitals A and C are at one end, hospital B is at the other."""
    with cable() as made:
        yield made


@pytest.fixture
def federation(tmp_path: Path, wire: Cable) -> Iterator[Federation]:
    """Three hospitals and a coordinator; it listens in its namespace only."""
    with Federation(tmp_path, ["A", "B", "C"], host=HUB) as running:
        configure(running)
        yield running


@pytest.mark.parametrize("long", [False, True], ids=["shortly", "long"])
def test_a_cable_is_pulled_while_the_hospital_trains(
    federation: Federation, wire: Cable, whole: Whole, note: Note, long: bool
) -> None:
    start(federation, wire)
    reader = EventReader(federation.site("B") / "state" / "events.jsonl")
    federation.start_sites("B", before=wire.inside(wire.far))
    wait_until(
        lambda: any(event.kind == "validated" and event.values["round"] == 1 for event in reader.new()),
        "B trains in round 2",
        DEADLINE_S,
    )
    wire.cut()
    note_end(federation, wire, whole, note, "training", long)


@pytest.mark.parametrize("long", [pytest.param(False, marks=short, id="shortly"), pytest.param(True, id="long")])
def test_a_cable_is_pulled_during_an_upload(
    federation: Federation, wire: Cable, whole: Whole, note: Note, long: bool
) -> None:
    start(federation, wire)
    folder = federation.folder
    script = held_upload(folder)
    federation.start_script("B", script, federation.join_arguments("B"), before=wire.inside(wire.far))
    wait_until(round_done(federation, 1), "round 1 is done", DEADLINE_S)
    (folder / "hold").touch()
    wait_until((folder / "held").exists, "an upload has begun", DEADLINE_S)
    wire.cut()
    (folder / "go on").touch()
    note_end(federation, wire, whole, note, "uploading", long)


def start(federation: Federation, wire: Cable) -> None:
    """Start the coordinator's end."""
    federation.start_server(before=wire.inside(wire.hub))
    federation.start_sites("A", "C", before=wire.inside(wire.hub))


def note_end(federation: Federation, wire: Cable, whole: Whole, note: Note, state: str, long: bool) -> None:
    """Wait until the cut is felt, mend it, and wait for the end of the run."""
    wait_until(wire.holds_back, "something is stuck in the cable", DEADLINE_S)
    if long:
        federation.wait_for_output("server", "round 2, site B: ")
    wire.mend()
    since = time.monotonic()
    seconds = recovered_after(federation, since)
    result = finish(federation, whole, ["server", *federation.sites])
    assert ("round 2, site B: " in federation.output("server")) == long
    note(Case(f"one hospital's network is cut {'until it is missed' if long else 'shortly'}", state, seconds, result))
