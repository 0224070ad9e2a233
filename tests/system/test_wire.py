"""Updates in other types than float32, between real processes over TLS."""

import threading
from pathlib import Path

import pytest
from federation import Federation
from in_process import Sites

from fedpath.client.audit import verify
from fedpath.core.config import load_federation
from fedpath.core.events import EventLog
from fedpath.core.models import load_model
from fedpath.core.training.alone import initial_model
from fedpath.server.folder import RunFolder
from fedpath.server.records import read_rounds
from fedpath.server.rounds import FederatedRun

pytestmark = pytest.mark.system


def weights(folder: Path) -> dict[str, bytes]:
    return {
        f"{file}/{name}": tensor.numpy().tobytes()
        for file in ("best", "last")
        for name, tensor in load_model(folder / f"{file}.safetensors")[0].state_dict().items()
    }


@pytest.mark.parametrize("encoding", ["bfloat16", "int8"])
def test_processes_make_of_encoded_updates_what_one_process_does(federation: Federation, encoding: str) -> None:
    exchange = f'[exchange]\nencoding = "{encoding}"'
    federation.configure(model="[model.options]\ninner = 64\nattention = 64", training=exchange, rounds=2)
    federation.start_server()
    federation.start_sites()
    assert [federation.wait(name) for name in ("server", *federation.sites)] == [0, 0, 0, 0]
    folder, config = federation.run_folder(), load_federation(federation.toml)
    manifests = read_rounds(folder)
    assert [manifest.counted() for manifest in manifests] == [["A", "B", "C"]] * 2

    alone = federation.folder / "alone"
    sites, stop = Sites(federation.folder / "hospitals", federation.sites), threading.Event()
    FederatedRun(config, "alone", initial_model(config), sites, RunFolder(alone, config), EventLog(), stop).execute()
    assert weights(folder) == weights(alone)

    numbers = sum(parameter.numel() for parameter in initial_model(config).parameters())
    of_float32 = {"bfloat16": 0.6, "int8": 0.4}[encoding]  # a small model: names and vectors weigh more than in others
    for site in federation.sites:
        (first, _) = (
            record for record in verify(federation.site(site) / "state/audit.jsonl") if record.kind == "update"
        )
        words = {"bfloat16": "bfloat16 weights", "int8": "int8 changes"}[encoding]
        assert first.holds.startswith(f"{numbers} parameters (image) as {words}, patient counts")
        assert first.size == manifests[0].sites[site].received_bytes < of_float32 * 4 * numbers
