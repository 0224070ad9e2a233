"""kill -9 of the coordinator and of the hospitals' agents, in every state of a round and of a run's end.

The coordinator is one process with Flower's server in it, and a hospital's agent trains in its own process: killing
them kills those too.
"""

import signal
import time

import pytest
from fault_cases import (
    DEADLINE_S,
    KILLED_AGENT,
    KILLED_COORDINATOR,
    Whole,
    finish,
    killed,
    recovered_after,
    round_done,
)
from fault_table import Case, Note
from federation import Federation, wait_until

pytestmark = pytest.mark.faults
short = pytest.mark.system


@pytest.mark.parametrize(
    "state",
    [
        "asked",
        pytest.param("answered", marks=short),
        pytest.param("aggregated", marks=short),
        "evaluated",
        "published",
        "closing",
        "tested",
        "finished",
    ],
)
def test_the_coordinator_is_killed(federation: Federation, whole: Whole, note: Note, state: str) -> None:
    script = KILLED_COORDINATOR.replace("{state!r}", repr(state))
    federation.start_script(
        "server", script, ["server", "start", "--config", federation.toml, "--dir", federation.state]
    )
    federation.start_sites()
    since = killed(federation, "server")
    federation.start_server(name="again")
    seconds = recovered_after(federation, since)
    # Of the goodbye some sites may have heard already: those have left.
    result = finish(federation, whole, ["again", *federation.sites])
    assert "which goes on" in federation.output("again")
    note(Case("kill -9 of the coordinator", state, seconds, result))


@pytest.mark.parametrize("state", [pytest.param("asked", marks=short), "trained", "answered"])
def test_an_agent_is_killed(federation: Federation, whole: Whole, note: Note, state: str) -> None:
    federation.start_server()
    federation.start_sites("A", "C")
    federation.start_script("B", KILLED_AGENT.replace("{state!r}", repr(state)), federation.join_arguments("B"))
    since = killed(federation, "B")
    federation.start("B-again", federation.join_arguments("B"))
    seconds = recovered_after(federation, since)
    result = finish(federation, whole, ["server", "A", "B-again", "C"])
    note(Case("kill -9 of an agent", state, seconds, result))


def test_all_are_killed_at_once(federation: Federation, whole: Whole, note: Note) -> None:
    federation.start_server()
    federation.start_sites()
    wait_until(round_done(federation, 1), "round 1 is done", DEADLINE_S)
    names = ["server", *federation.sites]
    for name in names:
        federation.signal(name, signal.SIGKILL)
    for name in names:
        killed(federation, name)
    since = time.monotonic()
    again = [f"{name}-again" for name in federation.sites]
    federation.start_server(name="server-again")
    for name, site in zip(again, federation.sites, strict=True):
        federation.start(name, federation.join_arguments(site))
    seconds = recovered_after(federation, since)
    result = finish(federation, whole, ["server-again", *again])
    note(Case("kill -9 of all processes", "in round 2", seconds, result))
