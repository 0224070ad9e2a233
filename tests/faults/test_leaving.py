"""A hospital leaves and comes back; and a round that cannot meet its quorum waits, says so, and stops with all kept."""

import signal
import time

import pytest
from fault_cases import DEADLINE_S, Whole, configure, finish, killed, recovered_after, start_sites
from fault_hooks import killed_agent
from fault_table import Case, Note
from federation import Federation, wait_until

from fedpath.core.exchange.stored import ArrayFile
from fedpath.server.records import RoundManifest, read_rounds

pytestmark = [pytest.mark.faults, pytest.mark.system]


def test_a_hospital_leaves_and_comes_back(federation: Federation, note: Note) -> None:
    """The others are enough; what it is not part of does not name it."""
    federation.configure(rounds=300, min_sites=2, training="local_epochs = 2", server="grace_s = 0")
    federation.start_server()
    federation.start_sites()

    def rounds() -> list[RoundManifest]:
        return read_rounds(federation.run_folder())

    federation.wait_for_output("server", "counted A, B, C")
    federation.signal("C", signal.SIGINT)
    assert federation.wait("C") == 130
    federation.wait_for_output("server", "counted A, B in ")
    since = time.monotonic()
    federation.start("C-again", federation.join_arguments("C"))
    wait_until(lambda: rounds()[-1].counted() == ["A", "B", "C"], "C counts again", DEADLINE_S)
    seconds = time.monotonic() - since
    federation.signal("server", signal.SIGINT)
    assert federation.wait("server", DEADLINE_S) == 130
    assert not any("Traceback" in federation.output(name) for name in ("server", "A", "B", "C", "C-again"))
    counted = [manifest.counted() for manifest in rounds()]
    without = [at for at, sites in enumerate(counted, 1) if sites == ["A", "B"]]
    assert without == list(range(without[0], without[-1] + 1))
    assert all(sites == ["A", "B", "C"] for at, sites in enumerate(counted, 1) if at not in without)
    with ArrayFile(federation.run_folder() / "last.safetensors") as model:
        said = model.metadata["contributions"]
    assert f'"A": {list(range(1, len(counted) + 1))}' in said
    assert f'"C": {[at for at in range(1, len(counted) + 1) if at not in without]}' in said
    note(Case("a hospital leaves and comes back", "between rounds", seconds, "the others went on, then with it"))


def test_a_round_without_its_quorum_stops_with_everything_kept(
    federation: Federation, whole: Whole, note: Note
) -> None:
    configure(federation, more="[deadline]\nquorum_wait_s = 2")
    federation.start_server()
    start_sites(federation, {"C": killed_agent("asked")})
    killed(federation, "C")
    assert federation.wait("server", DEADLINE_S) == 6
    said = federation.output("server")
    assert "round 2: 2 of 3 updates are here; waiting for C" in said
    assert "error: round 2: 2 of 3 sites gave a usable update (C: it is not connected)" in said
    assert "the model of round 1 is kept, and so are the updates that came: the same command goes on there" in said
    for site in "AB":
        assert federation.wait(site) == 5
        assert "the run has ended early: round 2: 2 of 3 sites" in federation.output(site)
    since = time.monotonic()
    federation.start_server(name="again")
    for site in federation.sites:
        federation.start(f"{site}-again", federation.join_arguments(site))
    seconds = recovered_after(federation, since)
    result = finish(federation, whole, ["again", *(f"{site}-again" for site in federation.sites)])
    note(Case("one hospital of a quorum stays away, all are started again", "asked", seconds, result))
