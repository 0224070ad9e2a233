"""Models of some megabytes, whole federations: connections that break and a coordinator that is killed in mid-file."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from federation import Federation, wait_until
from slow_link import CuttingProxy

from fedpath.client.audit import AUDIT_FILE, verify
from fedpath.core.events import EventReader
from fedpath.core.models import load_model
from fedpath.server.records import read_rounds

pytestmark = pytest.mark.system

MB = 1 << 20
SIZE = 4 * 2_000_000
LARGE = '[model]\nname = "abmil"\noptions = { inner = 1024, attention = 976 }'
"""Of about that many bytes."""


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    """Two hospitals with a model that travels apart from its messages."""
    with Federation(tmp_path, ["A", "B"]) as running:
        running.configure(rounds=2, model=LARGE, training="accumulate_bags = 64")
        yield running


def test_connections_that_break_in_mid_file_cost_what_was_on_the_way(federation: Federation) -> None:
    cuts = {"cut_up": [5 * MB, 12 * MB], "cut_down": [3 * MB, 14 * MB]}
    with CuttingProxy(federation.port, **cuts) as proxy:
        federation.lead_through("B", proxy.port)
        federation.start_server()
        federation.start_sites()
        assert [federation.wait(name) for name in ("server", "A", "B")] == [0, 0, 0]
        assert proxy.cut == 4
        # Two updates up; the initial model and those of two rounds down.
        assert proxy.passed["up"] < 2 * SIZE + 2 * 2 * MB
        assert proxy.passed["down"] < 3 * SIZE + 2 * 2 * MB
    run = federation.run_folder()
    for manifest in read_rounds(run):
        assert manifest.counted() == ["A", "B"]
        for part in manifest.sites.values():
            assert part.reason == ""
            assert part.received_bytes > SIZE
            assert part.sent_bytes > SIZE
    assert "trying again" in federation.output("B")
    for site in federation.sites:
        state = federation.site(site) / "state"
        assert _state(state / run.name / "federated.safetensors") == _state(run / "best.safetensors")
        assert not (state / "transfer" / "test").exists()
        kinds = [record.kind for record in verify(state / AUDIT_FILE)]
        assert kinds == ["description", *["arrays", "update"] * 2, "evaluation", "evaluation", "receipt"]
    left = [path.name for path in federation.state.iterdir()]
    assert "incoming" not in left
    assert "outgoing" not in left
    # The database saw messages, not models.
    assert (federation.state / "flower.db").stat().st_size < SIZE / 2


def test_a_coordinator_that_is_killed_in_mid_file_goes_on_with_what_has_arrived(federation: Federation) -> None:
    reader = EventReader(federation.site("B") / "state" / "events.jsonl")
    with CuttingProxy(federation.port, hold_up=5 * MB) as proxy:
        federation.lead_through("B", proxy.port)
        federation.start_server()
        federation.start_sites()
        wait_until(proxy.held.is_set, "B has sent half of its update")
        wait_until(lambda: _there(federation) > 3 * MB, "most of that is on the coordinator's disk")
        federation.signal("server", signal.SIGKILL)
        federation.wait("server")
        federation.start_server(name="again")
        proxy.release()
        assert [federation.wait(name) for name in ("again", "A", "B")] == [0, 0, 0]
        assert proxy.passed["up"] < 2 * SIZE + 3 * MB
    assert "order_dropped" in [event.kind for event in reader.new()]
    assert [manifest.counted() for manifest in read_rounds(federation.run_folder())] == [["A", "B"]] * 2


def _there(federation: Federation) -> int:
    return sum(path.stat().st_size for path in (federation.state / "incoming" / "B").glob("*.part"))


def _state(path: Path) -> dict[str, bytes]:
    model, _ = load_model(path)
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}
