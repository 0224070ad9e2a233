"""Several runs over one Flower server: each hears its own news, and none takes another's order for lost."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedpath.core.config import FederationConfig
from fedpath.server.flower import FlowerServer
from fedpath.server.listener import Listener
from fedpath.server.provision import load_server_credentials, provision


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FlowerServer]:
    config = FederationConfig.model_validate(
        {
            "federation": {"name": "test", "sites": ["A", "B"]},
            "server": {"address": "localhost:1"},
            "task": {"labels": ["normal", "tumour"]},
            "features": {"encoder": "noise", "width": 8},
        }
    )
    provision(config, tmp_path / "credentials")
    credentials = load_server_credentials(tmp_path / "credentials/server", ["A", "B"])
    listener = Listener(host="127.0.0.1", port=0, certificate=credentials.certificate, key=credentials.key)
    with FlowerServer(
        database=tmp_path / "flower.db", public_keys=credentials.public_keys, listener=listener
    ) as running:
        running._state.activate_node(running._nodes["A"], 60.0)  # as its agent does
        yield running


def test_an_order_that_is_being_stored_is_not_taken_for_lost(
    server: FlowerServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, collectors = server._state.store_message_and_object_tree, list[threading.Thread]()

    def storing(*values: Any) -> Any:
        """Another run, or an upload, looks for answers in this moment."""
        collectors.append(threading.Thread(target=server.note_upload))
        collectors[0].start()
        collectors[0].join(0.5)  # it may wait until the order is stored
        return store(*values)

    monkeypatch.setattr(server._state, "store_message_and_object_tree", storing)
    ticket = server.send("A", "query", "0", b"order", ttl_s=60)
    collectors[0].join()
    assert server.receive(ticket) is None


def test_news_reach_everybody_who_waits(server: FlowerServer) -> None:
    """Whoever looks for answers does not keep the news from others."""
    server.send("A", "query", "0", b"order", ttl_s=60)
    first = server.expect_news()
    server.note_upload()
    second = server.expect_news()
    assert second != first
    server.wait_for_news(first, 60)  # returns at once
    waiting = threading.Thread(target=server.wait_for_news, args=(second, 60))
    waiting.start()
    server.note_upload()
    waiting.join(30)
    assert not waiting.is_alive()


def test_a_site_that_has_not_connected_has_no_arrivals(server: FlowerServer) -> None:
    assert (server.arrivals("B"), server.online()) == (0, {"A"})
