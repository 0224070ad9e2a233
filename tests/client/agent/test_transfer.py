"""Files to and from a coordinator over a way that breaks: what has arrived is not sent again."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from slow_link import CuttingProxy

from fedpath.client.agent.kit import Kit
from fedpath.client.agent.transfer import RunOverError, Transfer
from fedpath.core.asgi import Receive, Scope, Send
from fedpath.core.errors import ConnectionFailedError, RefusedError, StoppedError
from fedpath.core.exchange.wire import Apart, hash_arrays
from fedpath.core.files import write_bytes
from fedpath.server import certificates
from fedpath.server.listener import Listener
from fedpath.server.provision import _pem
from fedpath.server.tensors import Incoming, Outgoing, TensorApp

MB = 1 << 20
MODEL = {"image/w": np.random.default_rng(0).normal(size=(8 * MB) // 4).astype(np.float32)}
CONTENT = MODEL["image/w"].tobytes()
APART = Apart(hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


async def _lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


@dataclass
class Coordinator:
    """Its listener, with an order with `MODEL` to site A that is open."""

    folder: Path
    port: int
    node_key: object
    outgoing: Outgoing
    incoming: Incoming
    model: Apart
    away: list[str | None] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def transfer(self, port: int | None = None, *, patience_s: float = 20.0) -> Transfer:
        address = f"localhost:{port or self.port}"
        kit = Kit("lung", "A", address, self.folder / "ca.crt", self.node_key)  # type: ignore[arg-type]
        return Transfer(
            kit,
            self.folder / "site",
            stop=self.stop,
            away=self.away.append,
            progress=lambda way, done, total: None,
            patience_s=patience_s,
        )

    def write_answer(self, transfer: Transfer) -> Path:
        transfer.answer_file.parent.mkdir(exist_ok=True)
        transfer.answer_file.write_bytes(CONTENT)
        return transfer.answer_file

    def arrived(self) -> bool:
        path = self.incoming.claim("A", APART)
        return path is not None and path.read_bytes() == CONTENT


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    """A coordinator in a thread."""
    authority_key, key, node_key = (certificates.new_key() for _ in range(3))
    authority = certificates.make_authority("test", authority_key)
    certificate = certificates.make_server_certificate("localhost", key.public_key(), authority, authority_key)
    certificates.write_key(tmp_path / "server.key", key)
    write_bytes(tmp_path / "server.crt", _pem(certificate))
    write_bytes(tmp_path / "ca.crt", _pem(authority))
    outgoing, incoming = Outgoing(tmp_path / "out"), Incoming(tmp_path / "in", ["A"])
    model = outgoing.write(MODEL, "model")
    outgoing.lend(model, "A")
    incoming.expect("A", "order", len(CONTENT))
    listener = Listener(host="127.0.0.1", port=0, certificate=tmp_path / "server.crt", key=tmp_path / "server.key")
    app = TensorApp({"A": node_key.public_key()}, outgoing, incoming, lambda request, done: None)
    listener.start(_lifespan, app)
    yield Coordinator(tmp_path, listener.port, node_key, outgoing, incoming, model)
    listener.stop()


def test_a_model_comes_and_an_update_goes(coordinator: Coordinator) -> None:
    transfer = coordinator.transfer()
    arrays = transfer.fetch(coordinator.model)
    assert hash_arrays(arrays) == hash_arrays(MODEL)
    file = coordinator.write_answer(transfer)
    transfer.send(file, APART)
    assert not file.exists()
    assert coordinator.arrived()
    assert coordinator.away == []
    transfer.clear()
    assert hash_arrays(arrays) == hash_arrays(MODEL)  # still mapped
    assert not (coordinator.folder / "site").exists()


def test_a_model_that_is_here_is_not_fetched_again(coordinator: Coordinator) -> None:
    with CuttingProxy(coordinator.port) as proxy:
        transfer = coordinator.transfer(proxy.port)
        transfer.fetch(coordinator.model)["image/w"][:] = 0  # somebody's own memory
        passed = dict(proxy.passed)
        assert hash_arrays(transfer.fetch(coordinator.model)) == hash_arrays(MODEL)
        assert proxy.passed == passed


@pytest.mark.parametrize("way", ["up", "down"])
def test_only_what_is_missing_is_sent_after_a_cut(coordinator: Coordinator, way: str) -> None:
    cuts = [2 * MB, 4 * MB, 7 * MB]
    with CuttingProxy(
        coordinator.port, cut_up=cuts if way == "up" else (), cut_down=cuts if way == "down" else ()
    ) as proxy:
        transfer = coordinator.transfer(proxy.port)
        if way == "down":
            assert hash_arrays(transfer.fetch(coordinator.model)) == hash_arrays(MODEL)
        else:
            transfer.send(coordinator.write_answer(transfer), APART)
            assert coordinator.arrived()
        assert proxy.cut == 3
        # What was in a buffer at a cut is lost. Begun anew after each, it would be 15 MB.
        assert len(CONTENT) <= proxy.passed[way] < len(CONTENT) + 4 * MB
        assert None in coordinator.away
        assert any(reason and "cannot be reached" in reason for reason in coordinator.away)


def test_an_agent_that_was_killed_goes_on(coordinator: Coordinator) -> None:
    folder = coordinator.folder / "site"
    coordinator.transfer().fetch(coordinator.model)
    (whole,) = folder.glob("*.safetensors")
    content = whole.read_bytes()
    whole.unlink()
    whole.with_suffix(".part").write_bytes(content[: 5 * MB])
    (folder / "left.part").write_bytes(b"of another order")
    with CuttingProxy(coordinator.port) as proxy:
        assert hash_arrays(coordinator.transfer(proxy.port).fetch(coordinator.model)) == hash_arrays(MODEL)
        assert 3 * MB < proxy.passed["down"] < 3 * MB + MB // 2
    assert [path.name for path in folder.iterdir()] == [whole.name]


def test_what_is_damaged_on_disk_is_fetched_again(coordinator: Coordinator) -> None:
    folder = coordinator.folder / "site"
    folder.mkdir()
    (folder / f"{coordinator.model.sha256}.part").write_bytes(b"x" * MB)
    assert hash_arrays(coordinator.transfer().fetch(coordinator.model)) == hash_arrays(MODEL)


def test_an_update_that_is_there_already_is_not_sent_again(coordinator: Coordinator) -> None:
    with CuttingProxy(coordinator.port) as proxy:
        transfer = coordinator.transfer(proxy.port)
        transfer.send(coordinator.write_answer(transfer), APART)
        passed = proxy.passed["up"]
        transfer.send(coordinator.write_answer(transfer), APART)
        assert proxy.passed["up"] - passed < MB // 2
    assert coordinator.arrived()


def test_an_order_that_is_not_open_any_more_ends_the_matter(coordinator: Coordinator) -> None:
    transfer = coordinator.transfer()
    coordinator.outgoing.take_back(coordinator.model, "A")
    coordinator.incoming.expect_no_more("A", "order")
    with pytest.raises(RunOverError):
        transfer.fetch(coordinator.model)
    with pytest.raises(RunOverError):
        transfer.send(coordinator.write_answer(transfer), APART)


def test_a_file_that_is_too_large_is_said_so(coordinator: Coordinator) -> None:
    coordinator.incoming.expect("A", "order", len(CONTENT) - 1)
    transfer = coordinator.transfer()
    with pytest.raises(ConnectionFailedError, match=r"refused a file of 8,388,608 bytes .* site A \(HTTP 413\)"):
        transfer.send(coordinator.write_answer(transfer), APART)


def test_a_model_for_which_there_is_no_room_is_refused(coordinator: Coordinator) -> None:
    with pytest.raises(RefusedError, match="site A has no room for a model of 1,000,000,000,000,000 bytes"):
        coordinator.transfer().fetch(Apart(coordinator.model.sha256, 10**15))


def test_another_key_is_turned_away(coordinator: Coordinator) -> None:
    coordinator.node_key = certificates.new_key()
    with pytest.raises(ConnectionFailedError, match=r"HTTP 401") as caught:
        coordinator.transfer().fetch(coordinator.model)
    assert "node.key" in caught.value.remedy


def test_the_proxy_of_the_environment_is_used(coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    with CuttingProxy(coordinator.port, cut_down=[3 * MB], connects=True) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:pass%20word@127.0.0.1:{proxy.port}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        transfer = coordinator.transfer()
        assert hash_arrays(transfer.fetch(coordinator.model)) == hash_arrays(MODEL)
        transfer.send(coordinator.write_answer(transfer), APART)
    assert coordinator.arrived()
    assert len(proxy.requests) == 3  # one more for the cut
    for request in proxy.requests:
        assert request.startswith(f"CONNECT localhost:{coordinator.port} HTTP/1.")
        assert "Proxy-Authorization: Basic dXNlcjpwYXNzIHdvcmQ=" in request


def _nobody(coordinator: Coordinator) -> int:
    with CuttingProxy(coordinator.port) as proxy:
        return proxy.port


@pytest.mark.parametrize("way", ["fetch", "send"])
def test_patience_ends_when_nothing_moves(coordinator: Coordinator, way: str) -> None:
    transfer = coordinator.transfer(_nobody(coordinator), patience_s=0.5)
    act: dict[str, Callable[[], object]] = {
        "fetch": lambda: transfer.fetch(coordinator.model),
        "send": lambda: transfer.send(coordinator.write_answer(transfer), APART),
    }
    with pytest.raises(ConnectionFailedError, match="cannot be reached"):
        act[way]()
    coordinator.stop.set()
    with pytest.raises(StoppedError):
        act[way]()
