"""Sites that misbehave, as real processes: a poisoned update is refused by name, an answer outlives its site."""

import json
import signal
from pathlib import Path

import pytest
from federation import Federation, wait_until

from fedpath.core.config import load_federation
from fedpath.server.flower import FlowerServer, Lost
from fedpath.server.listener import Listener
from fedpath.server.provision import load_server_credentials
from fedpath.server.records import read_rounds

pytestmark = pytest.mark.system

# Trains like any site, then puts a NaN into the update from round 2 on.
_POISONER = """
import numpy as np
from fedpath.client.agent.worker import Worker
from fedpath.cli.main import main

honest = Worker._train

def poisoned(self, order, arrays):
    update, trained = honest(self, order, arrays)
    if order.round > 1:
        trained[sorted(trained)[0]].flat[0] = np.nan
    return update, trained

Worker._train = poisoned
main()
"""

# Fetches one message, answers it with what it holds, and leaves at once.
_LEAVER = """
import sys, threading
from pathlib import Path
from fedpath.client.agent.app import reply_to
from fedpath.client.agent.flower import FleetConnection
from fedpath.client.agent.kit import load_kit
from fedpath.core.exchange.wire import BLOB

with FleetConnection(load_kit(Path(sys.argv[1])), stop=threading.Event(), away=print) as connection:
    while (message := connection.fetch()) is None:
        pass
    connection.answer(reply_to(message, message.content.array_records[BLOB][BLOB].data), 0.0)
"""


def test_a_poisoned_update_is_refused_by_name_and_the_round_goes_on(federation: Federation) -> None:
    federation.configure(min_sites=2)
    federation.start_server()
    federation.start_sites("A", "B")
    federation.start_script("C", _POISONER, federation.join_arguments("C"))
    assert [federation.wait(name) for name in ("server", *federation.sites)] == [0, 0, 0, 0]
    first, second, third = read_rounds(federation.run_folder())
    assert first.sites["C"].outcome == "answered"
    assert first.patients == {"image": 24}
    for manifest in (second, third):
        assert manifest.sites["C"].outcome == "refused"
        assert "site C, round" in manifest.sites["C"].reason
        assert "NaN" in manifest.sites["C"].reason
        assert manifest.patients == {"image": 16}
    summary = json.loads((federation.run_folder() / "summary.json").read_text())
    assert summary["rounds_counted"] == {"A": [1, 2, 3], "B": [1, 2, 3], "C": [1]}
    assert "site C: refused: site C, round 2: update refused" in federation.output("server")


def test_an_answer_outlives_its_site(federation: Federation, tmp_path: Path) -> None:
    """Flower gives no answer of a site out that has left; the coordinator takes it when it comes."""
    config = load_federation(federation.toml)
    credentials = load_server_credentials(federation.credentials / "server", config.federation.sites)
    listener = Listener(
        host="127.0.0.1", port=federation.port, certificate=credentials.certificate, key=credentials.key
    )
    content = bytes(range(256)) * 1000
    with FlowerServer(
        database=tmp_path / "flower.db", public_keys=credentials.public_keys, listener=listener
    ) as server:
        never = server.send("B", "query", "0", content, ttl_s=60)
        assert server.receive(never) == Lost("it could not be asked")
        federation.start_script("A", _LEAVER, [federation.credentials / "kits" / "A"])
        wait_until(lambda: server.online() == {"A"}, "A is connected")
        ticket = server.send("A", "query", "0", content, ttl_s=60)
        assert federation.wait("A") == 0
        assert server.online() == set()
        assert server.receive(ticket) == content


# Answers its order with what all say. With two more arguments, it makes the first file when only that is left to be
# sent, and sends it when the second one is there.
_TWIN = """
import sys, threading
from pathlib import Path
from flwr.app import Message
from fedpath.client.agent import flower
from fedpath.client.agent.app import reply_to
from fedpath.client.agent.kit import load_kit

push = flower.push_objects

def pushing(objects, send, *, object_ids_to_push):
    if len(sys.argv) > 2:
        own = {name for name in object_ids_to_push if isinstance(objects[name], Message)}
        push(objects, send, object_ids_to_push=own)
        object_ids_to_push -= own
        Path(sys.argv[2]).touch()
        while not Path(sys.argv[3]).exists():
            threading.Event().wait(0.02)
    push(objects, send, object_ids_to_push=object_ids_to_push)

flower.push_objects = pushing
with flower.FleetConnection(load_kit(Path(sys.argv[1])), stop=threading.Event(), away=print) as connection:
    while (message := connection.fetch()) is None:
        pass
    connection.answer(reply_to(message, b"the same"), 0.0)
"""


def test_two_sites_may_send_the_same(federation: Federation, tmp_path: Path) -> None:
    """Flower keeps what is sent by its content: what one site's answer needs may have come with another's."""
    config = load_federation(federation.toml)
    credentials = load_server_credentials(federation.credentials / "server", config.federation.sites)
    listener = Listener(
        host="127.0.0.1", port=federation.port, certificate=credentials.certificate, key=credentials.key
    )
    kits, held, go = federation.credentials / "kits", tmp_path / "held", tmp_path / "go"
    with FlowerServer(
        database=tmp_path / "flower.db", public_keys=credentials.public_keys, listener=listener
    ) as server:
        federation.start_script("A", _TWIN, [kits / "A", held, go])
        wait_until(lambda: server.online() == {"A"}, "A is connected")
        of_a = server.send("A", "query", "0", b"order", ttl_s=60)
        wait_until(held.exists, "A is about to send")
        federation.start_script("B", _TWIN, [kits / "B"])
        wait_until(lambda: server.online() == {"A", "B"}, "B is connected")
        of_b = server.send("B", "query", "0", b"order", ttl_s=60)
        assert federation.wait("B") == 0
        assert [server.receive(ticket) for ticket in (of_b, of_a)] == [b"the same"] * 2
        go.touch()
        assert federation.wait("A") == 0, federation.output("A")


# Joins as the only agent of a folder, fetches an order and holds it; "once more" lets it leave without one.
_HOLDER = """
import sys, threading
from pathlib import Path
from fedpath.client.agent.flower import FleetConnection
from fedpath.client.agent.kit import load_kit
from fedpath.client.agent.presence import presence

stop = threading.Event()
with presence(Path(sys.argv[2]), "test", stop) as present:
    with FleetConnection(load_kit(Path(sys.argv[1])), stop=stop, away=print, presence=present) as connection:
        while sys.argv[3] == "hold":
            if connection.fetch() is not None:
                print("has it")
                stop.wait()
        while connection.fetch() is None:
            pass
"""


def test_an_agent_that_is_started_again_is_back_at_once_and_is_asked_anew(federation: Federation) -> None:
    """The coordinator takes a killed agent for connected until its heartbeats are missed; the next one knows better."""
    config = load_federation(federation.toml)
    credentials = load_server_credentials(federation.credentials / "server", config.federation.sites)
    listener = Listener(
        host="127.0.0.1", port=federation.port, certificate=credentials.certificate, key=credentials.key
    )
    kit, state = federation.credentials / "kits" / "A", federation.site("A") / "state"
    with FlowerServer(
        database=federation.state / "flower.db", public_keys=credentials.public_keys, listener=listener
    ) as server:
        federation.start_script("A", _HOLDER, [kit, state, "hold"])
        wait_until(lambda: server.online() == {"A"}, "A is connected")
        fetched = server.send("A", "query", "0", b"fetched", ttl_s=60)
        federation.wait_for_output("A", "has it")
        never = server.send("A", "query", "0", b"not fetched", ttl_s=60)
        assert server.receive(fetched) is server.receive(never) is None
        federation.signal("A", signal.SIGKILL)
        federation.wait("A")
        assert server.online() == {"A"}
        federation.start_script("again", _HOLDER, [kit, state, "once more"])
        wait_until(lambda: server.receive(fetched) == Lost("its agent was started again"), "A is known to be another")
        assert server.receive(never) == Lost("its agent was started again")
        assert server.online() == {"A"}
        # What it gets is what was sent to it, and nothing of what was sent to the one before.
        server.send("A", "query", "0", b"anew", ttl_s=60)
        assert federation.wait("again") == 0


def test_two_agents_do_not_work_in_one_folder(federation: Federation) -> None:
    federation.configure(server="join_timeout_s = 300")
    federation.start_server()
    federation.start_sites("A")
    federation.wait_for_output("A", "joined")
    federation.start("second", federation.join_arguments("A"))
    assert federation.wait("second") == 2
    assert "another agent for federation 'test' works in this folder" in federation.output("second")
    assert "Traceback" not in federation.output("second")


def test_a_site_that_is_no_longer_listed_does_not_get_in(federation: Federation) -> None:
    """Its key was registered in an earlier run and is still in Flower's state."""
    federation.configure(server="join_timeout_s = 1", rounds=1)
    federation.start_server()
    assert federation.wait("server") == 6
    federation.sites.remove("C")
    federation.configure(server="join_timeout_s = 300")
    federation.start_server()
    federation.wait_for_output("server", "waiting: 0 of 2")
    federation.start_sites("C")
    assert federation.wait("C") == 4
    assert "does not know the key of site C" in federation.output("C")


def test_a_copied_kit_does_not_take_a_connected_sites_place(federation: Federation) -> None:
    federation.configure(server="join_timeout_s = 300")
    federation.start_server()
    federation.start_sites("A")
    federation.wait_for_output("A", "joined")
    elsewhere = federation.site("elsewhere") / "site.toml"
    elsewhere.parent.mkdir()
    data = '[data]\nmanifest = "../A/manifest.csv"\nfeatures = "../A/features"\n'
    elsewhere.write_text(f'[site]\nname = "A"\n{data}')
    federation.start("copy", [*federation.join_arguments("A")[:-1], elsewhere])
    assert federation.wait("copy") == 4
    assert "site A is connected to" in federation.output("copy")
    assert "Traceback" not in federation.output("copy")
