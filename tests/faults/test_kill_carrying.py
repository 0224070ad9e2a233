"""The same where hospitals carry something from round to round: SCAFFOLD's control variate and their own norms."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_cases import ROUNDS, finish, killed, recovered_after, undisturbed_state, whole_run
from fault_hooks import killed_agent, killed_coordinator
from fault_table import Case, Note
from federation import Federation

from fedpath.client.audit import AUDIT_FILE, verify
from fedpath.core.models import load_model

pytestmark = [pytest.mark.faults, pytest.mark.system]

LOCAL = """steps = 10
method = "scaffold"
personal = ["norm"]
learning_rate_scale = { B = 0.5 }
"""


def configure(federation: Federation) -> None:
    federation.configure(
        rounds=ROUNDS,
        model='[model]\nname = "transmil"\noptions = { inner = 8, heads = 2 }',
        training=f"[local]\n{LOCAL}",
        server="grace_s = 2\nround_timeout_s = 120",
    )


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    """Three small hospitals that all have to answer; every process ends with the test."""
    with Federation(tmp_path, ["A", "B", "C"]) as running:
        configure(running)
        yield running


def kept(state: Path) -> dict[str, bytes]:
    """What a hospital keeps of the run."""
    (path,) = state.glob("*/federated.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in load_model(path)[0].state_dict().items()}


def test_an_agent_and_the_coordinator_are_killed(federation: Federation, note: Note) -> None:
    whole = whole_run(federation)
    own = {site: kept(undisturbed_state(federation, site)) for site in federation.sites}
    assert own["A"] != own["B"]
    # B dies with its update, and what it keeps, on disk; the coordinator when the first update of the round counts.
    federation.start_script("server", killed_coordinator("answered"), federation.server_arguments())
    federation.start_sites("A", "C")
    federation.start_script("B", killed_agent("trained"), federation.join_arguments("B"))
    killed(federation, "B")
    since = killed(federation, "server")
    federation.start_server(name="again")
    federation.start("B-again", federation.join_arguments("B"))
    seconds = recovered_after(federation, since)
    result = finish(federation, whole, ["again", "A", "B-again", "C"])
    assert {site: kept(federation.site(site) / "state") for site in federation.sites} == own
    note(Case("kill -9 of both, SCAFFOLD and FedBN", "in round 2", seconds, result))
    (_, *entries) = verify(federation.site("A") / "state" / AUDIT_FILE)
    assert any("the change of the mean gradient of" in entry.holds for entry in entries)
