"""kill -9 of the coordinator, of a hospital's agent and of what trains there, in every state of a run.

The coordinator is one process with Flower's server in it (docs/architecture.md): killing it kills that too. With the
torch engine a hospital's agent trains in its own process; with DeepSpeed processes of their own do.
"""

import signal
import time

import pytest
from fault_cases import (
    DEADLINE_S,
    Whole,
    configure,
    finish,
    killed,
    recovered_after,
    round_done,
    start_sites,
    whole_run,
)
from fault_hooks import killed_agent, killed_coordinator, killed_trainer, poisoned_agent, slow_agent
from fault_table import Case, Note
from federation import Federation, wait_until

from fedpath.server.records import read_rounds

pytestmark = pytest.mark.faults
short = pytest.mark.system
COORDINATOR = "kill -9 of the coordinator and Flower's server, one process"
AGENT = "kill -9 of an agent, which trains"


@pytest.mark.parametrize(
    "state",
    [
        "gathered",
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
    federation.start_script("server", killed_coordinator(state), federation.server_arguments())
    federation.start_sites()
    since = killed(federation, "server")
    federation.start_server(name="again")
    seconds = recovered_after(federation, since)
    # Of the goodbye some sites may have heard already: those have left.
    result = finish(federation, whole, ["again", *federation.sites])
    assert state == "gathered" or "which goes on" in federation.output("again")
    note(Case(COORDINATOR, state, seconds, result))


@pytest.mark.parametrize("state", ["refused", "late"])
def test_the_coordinator_is_killed_when_a_site_does_not_count(federation: Federation, note: Note, state: str) -> None:
    """The third site's update of round 2 is bad, or comes too late: with the fault as without."""
    configure(federation, min_sites=2, more="[deadline]\nfloor_s = 12\nfactor = 1" if state == "late" else "")
    undisturbed = federation.folder / "undisturbed"
    whole = whole_run(federation, {"C": poisoned_agent() if state == "refused" else slow_agent(undisturbed)})
    assert whole.counted == {"A": [1, 2, 3], "B": [1, 2, 3], "C": [1, 3]}
    federation.start_script("server", killed_coordinator(state), federation.server_arguments())
    start_sites(federation, {"C": poisoned_agent() if state == "refused" else slow_agent(federation.state)})
    since = killed(federation, "server")
    federation.start_server(name="again")
    seconds = recovered_after(federation, since)
    result = finish(federation, whole, ["again", *federation.sites])
    assert read_rounds(federation.run_folder())[1].sites["C"].outcome == state
    note(Case(COORDINATOR, state, seconds, result))


@pytest.mark.parametrize(
    "state",
    [
        "describe",
        pytest.param("asked", marks=short),
        "trained",
        pytest.param("uploading", marks=short),
        "answered",
        "validation",
        "test",
        "finish",
    ],
)
def test_an_agent_is_killed(federation: Federation, whole: Whole, note: Note, state: str) -> None:
    federation.start_server()
    federation.start_sites("A", "C")
    federation.start_script("B", killed_agent(state), federation.join_arguments("B"))
    since = killed(federation, "B")
    federation.start("B-again", federation.join_arguments("B"))
    seconds = recovered_after(federation, since)
    result = finish(federation, whole, ["server", "A", "B-again", "C"])
    note(Case(AGENT, state, seconds, result))


def test_a_process_that_trains_is_killed(federation: Federation, note: Note) -> None:
    """Once, and the agent trains again; the coordinator hears nothing of it."""
    pytest.importorskip("deepspeed")
    use_deepspeed(federation, "B")
    whole = whole_run(federation)
    federation.start_server()
    start_sites(federation, {"B": killed_trainer(1)})
    federation.wait_for_output("B", "was killed by SIGKILL")
    since = time.monotonic()
    seconds = recovered_after(federation, since)
    result = finish(federation, whole, ["server", *federation.sites])
    assert "training once more" in federation.output("B")
    note(Case("kill -9 of a process that trains (DeepSpeed)", "training", seconds, result))


def test_a_process_that_trains_is_killed_again(federation: Federation, note: Note) -> None:
    """Twice: the site is refused in this round, with the reason, stays, and counts in the next."""
    pytest.importorskip("deepspeed")
    configure(federation, min_sites=2)
    use_deepspeed(federation, "B")
    federation.start_server()
    start_sites(federation, {"B": killed_trainer(2)})
    federation.wait_for_output("B", "was killed by SIGKILL")
    since = time.monotonic()
    seconds = recovered_after(federation, since)
    names = ("server", *federation.sites)
    assert [federation.wait(name, DEADLINE_S) for name in names] == [0] * 4
    second, third = read_rounds(federation.run_folder())[1:]
    assert second.sites["B"].outcome == "refused"
    assert second.sites["B"].reason == (
        "the process that trains was killed by SIGKILL, twice; the site's own log says more"
    )
    assert (second.counted(), third.counted()) == (["A", "C"], ["A", "B", "C"])
    assert "waiting for the next order" in federation.output("B")
    assert not any("Traceback" in federation.output(name) for name in names)
    note(Case("kill -9 of what trains (DeepSpeed), twice", "training", seconds, "completed without it in this round"))


@pytest.mark.parametrize("moment", ["gathering", pytest.param("round 2", marks=short), "the goodbye"])
def test_all_are_killed_at_once(federation: Federation, whole: Whole, note: Note, moment: str) -> None:
    federation.start_server()
    federation.start_sites()
    match moment:
        case "gathering":
            federation.wait_for_output("server", "accepted")
        case "round 2":
            wait_until(round_done(federation, 1), "round 1 is done", DEADLINE_S)
        case _:
            federation.wait_for_output("server", "model of round 3: validation")
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
    note(Case("kill -9 of all processes at once", moment, seconds, result))


def use_deepspeed(federation: Federation, site: str) -> None:
    """Let a hospital train in a process of its own."""
    with (federation.site(site) / "site.toml").open("a") as file:
        file.write('[compute]\nengine = "deepspeed"\n[compute.deepspeed]\nprocesses = 1\n')
