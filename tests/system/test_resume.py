"""`fedpath server start` after kill -9: the same command goes on, agents that stayed simply go on, no bit differs."""

import json
import signal
from pathlib import Path

import pytest
from federation import Federation, wait_until

from fedpath.core.events import EventReader
from fedpath.core.models import load_model
from fedpath.server.records import read_rounds

pytestmark = pytest.mark.system

STAGES = """
[[stage]]
kind = "select"
model = { name = "vib", options = { inner = 8, attention = 8 } }
training = { rounds = 2 }
[[stage]]
kind = "train"
training = { rounds = 4 }
"""


def test_a_killed_coordinator_goes_on_to_the_same_bits(federation: Federation) -> None:
    federation.configure(rounds=4, training="local_epochs = 50")
    whole = _undisturbed(federation)
    readers = {site: EventReader(federation.site(site) / "state" / "events.jsonl") for site in federation.sites}
    for reader in readers.values():
        reader.new()

    federation.start_server()
    federation.start_sites()
    # In the middle of round 2: the sites have validated the model of round 1 and train it.
    for site in federation.sites:
        _wait_for_event(readers[site], "validated", 1)
    _kill(federation)
    run = federation.run_folder()
    assert not (run / "summary.json").exists()
    assert len(read_rounds(run)) == 1
    for site in federation.sites:
        federation.wait_for_output(site, "trying again")
    federation.start_server(name="server-2")
    assert [federation.wait(name) for name in ("server-2", *federation.sites)] == [0, 0, 0, 0]
    assert "which goes on" in federation.output("server-2")
    assert "1 of 4 rounds are done already" in federation.output("server-2")
    assert "Traceback" not in federation.output("server-2")
    assert federation.run_folder() == run
    assert _models(run) == _models(whole)
    assert [manifest.result for manifest in read_rounds(run)] == [manifest.result for manifest in read_rounds(whole)]
    for site in federation.sites:
        received = federation.site(site) / "state" / run.name / "federated.safetensors"
        assert _state(received) == _state(run / "best.safetensors")
        assert "Traceback" not in federation.output(site)
    # Answers to the dead process's order were dropped, and the living one's order carried out.
    dropped = [event for reader in readers.values() for event in reader.new() if event.kind == "order_dropped"]
    assert dropped


def test_a_pipeline_killed_between_its_stages_goes_on(federation: Federation) -> None:
    federation.configure(rounds=4, training=f"local_epochs = 5\n{STAGES}")
    whole = _undisturbed(federation)

    federation.start_server()
    federation.start_sites()
    federation.wait_for_output("server", "stage 2 of 2: train (acmil)")
    _kill(federation)
    run = federation.run_folder()
    stages = json.loads((run / "pipeline.json").read_text())["done"]
    assert [(stage["name"], stage["sites"]) for stage in stages] == [("select", ["A", "B", "C"])]
    federation.start_server(name="server-2")
    assert [federation.wait(name) for name in ("server-2", *federation.sites)] == [0, 0, 0, 0]
    assert "done already: select" in federation.output("server-2")
    assert "stage 1 of 2" not in federation.output("server-2")
    assert "stage train: best round" in federation.output("server-2")
    assert _models(run) == _models(whole)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["folder"] == "stages/2-train"
    # Test patients are looked at once, for the model that is the result.
    assert [bool(stage["test"]) for stage in summary["stages"]] == [False, True]
    assert summary["test"] == summary["stages"][1]["test"]


def test_a_stopped_run_goes_on_and_new_begins_another(federation: Federation) -> None:
    federation.configure(rounds=30, training="local_epochs = 5")
    federation.start_server()
    federation.start_sites()
    federation.wait_for_output("server", "round 2: counted")
    federation.signal("server", signal.SIGINT)
    assert federation.wait("server") == 130
    assert [federation.wait(site) for site in federation.sites] == [5, 5, 5]
    run = federation.run_folder()
    done = len(read_rounds(run))

    federation.configure(rounds=done + 1, training="local_epochs = 5")
    federation.start_server(name="changed")
    assert federation.wait("changed") == 2
    assert f"training.rounds was 30, is {done + 1}" in federation.output("changed")
    assert "--new" in federation.output("changed")

    federation.configure(rounds=30, training="local_epochs = 5")
    federation.start_server(name="again")
    federation.start_sites()
    federation.wait_for_output("again", f"{done} of 30 rounds are done already")
    federation.wait_for_output("again", f"round {done + 1}: counted A, B, C")
    federation.signal("again", signal.SIGINT)
    assert federation.wait("again") == 130
    for site in federation.sites:
        federation.wait(site)
    assert [manifest.round for manifest in read_rounds(run)][: done + 1] == list(range(1, done + 2))

    federation.configure(rounds=1)
    arguments = ["server", "start", "--config", federation.toml, "--dir", federation.state, "--new"]
    federation.start("new", arguments)
    federation.start_sites()
    assert [federation.wait(name) for name in ("new", *federation.sites)] == [0, 0, 0, 0]
    assert len(list((federation.state / "runs").iterdir())) == 2


def _undisturbed(federation: Federation) -> Path:
    state = federation.folder / "undisturbed"
    federation.start_server(state=state, name="undisturbed")
    federation.start_sites()
    assert [federation.wait(name) for name in ("undisturbed", *federation.sites)] == [0, 0, 0, 0]
    return federation.run_folder(state)


def _wait_for_event(reader: EventReader, kind: str, round_: int) -> None:
    def there() -> bool:
        return any((event.kind, event.values.get("round")) == (kind, round_) for event in reader.new())

    wait_until(there, f"{kind} of round {round_}")


def _kill(federation: Federation) -> None:
    federation.signal("server", signal.SIGKILL)
    wait_until(lambda: federation.wait("server") == -signal.SIGKILL, "the coordinator is gone")


def _models(run: Path) -> dict[str, dict[str, bytes]]:
    kept = sorted((*run.rglob("best.safetensors"), *run.rglob("last.safetensors")))
    found = {str(path.relative_to(run)): _state(path) for path in kept}
    assert found
    return found


def _state(path: Path) -> dict[str, bytes]:
    model, _ = load_model(path)
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}
