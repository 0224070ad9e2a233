"""The requests about files on the coordinator's port: over TLS, signed, and what each mistake is answered with."""

import hashlib
import http.client
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from federation import wait_until

from fedpath.core.asgi import Receive, Scope, Send
from fedpath.core.exchange.transfer import OFFSET, SIGNATURE, SITE, SIZE, TIME, Request
from fedpath.core.exchange.wire import Apart
from fedpath.core.files import write_bytes
from fedpath.server import certificates
from fedpath.server.listener import Listener, answer
from fedpath.server.provision import _pem
from fedpath.server.tensors import Incoming, Outgoing, TensorApp

CONTENT = bytes(range(256)) * 10_000
APART = Apart(hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


@dataclass
class Served:
    port: int
    context: ssl.SSLContext
    keys: dict[str, ec.EllipticCurvePrivateKey]
    outgoing: Outgoing
    incoming: Incoming
    folder: Path
    model: Apart = field(default_factory=lambda: APART)

    def send(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPSConnection("localhost", self.port, context=self.context, timeout=10)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            connection.close()

    def ask(
        self,
        method: str,
        apart: Apart,
        offset: int = 0,
        body: bytes | None = None,
        *,
        site: str = "A",
        key: str | None = None,
        at: float | None = None,
        **changed: str,
    ) -> tuple[int, dict[str, str], bytes]:
        request = Request(method, site, apart, offset)
        headers = request.sign(self.keys[key or site], time.time() if at is None else at)
        return self.send(method, request.path, headers | changed, body)

    def put(self, content: bytes, apart: Apart = APART, offset: int = 0) -> int:
        return self.ask("PATCH", apart, offset, content)[0]


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return None
    return await answer(send, 204)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Sites A and B, and a key of somebody else; A is asked with a model."""
    folder = tmp_path_factory.mktemp("tensors")
    authority_key, key = certificates.new_key(), certificates.new_key()
    authority = certificates.make_authority("test", authority_key)
    certificate = certificates.make_server_certificate("localhost", key.public_key(), authority, authority_key)
    certificates.write_key(folder / "server.key", key)
    write_bytes(folder / "server.crt", _pem(certificate))
    write_bytes(folder / "ca.crt", _pem(authority))
    keys = {site: certificates.new_key() for site in ("A", "B", "other")}
    outgoing, incoming = Outgoing(folder / "out"), Incoming(folder / "in", ["A", "B"])
    public = {site: keys[site].public_key() for site in ("A", "B")}
    listener = Listener(host="127.0.0.1", port=0, certificate=folder / "server.crt", key=folder / "server.key")
    listener.start(_nothing, TensorApp(public, outgoing, incoming, lambda request, done: None))
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    yield Served(listener.port, context, keys, outgoing, incoming, folder)
    listener.stop()


@pytest.fixture
def asked(served: Served) -> Iterator[Served]:
    """While an order to A is open."""
    model = {"image/w": np.arange(600_000, dtype=np.float32)}
    served.model = served.outgoing.write(model, "model")
    served.outgoing.lend(served.model, "A")
    served.incoming.expect("A", "order", len(CONTENT))
    yield served
    served.outgoing.take_back(served.model, "A")
    served.incoming.expect_no_more("A", "order")
    served.incoming.clear()


def test_a_model_is_fetched_from_any_offset_on(asked: Served) -> None:
    status, _, whole = asked.ask("GET", asked.model)
    assert status == 200
    assert hashlib.sha256(whole).hexdigest() == asked.model.sha256
    for offset in (1, 1 << 20, asked.model.size - 1):
        assert asked.ask("GET", asked.model, offset)[::2] == (200, whole[offset:])
    assert asked.ask("GET", asked.model, asked.model.size)[::2] == (200, b"")
    assert asked.ask("GET", asked.model, asked.model.size + 1)[::2] == (200, b"")


def test_a_file_is_sent_and_goes_on_where_it_stopped(asked: Served) -> None:
    assert asked.ask("HEAD", APART)[1][OFFSET] == "0"
    connection = http.client.HTTPSConnection("localhost", asked.port, context=asked.context, timeout=10)
    request = Request("PATCH", "A", APART, 0)
    headers = request.sign(asked.keys["A"], time.time()) | {"Content-Length": str(APART.size)}
    connection.request("PATCH", request.path, iter([CONTENT[: 3 << 19]]), headers)
    # Not asked for: whoever asks has come back, and what is still on the way on the other connection does not count.
    part = asked.folder / "in" / "A" / f"{APART.sha256}.part"
    wait_until(lambda: part.exists() and part.stat().st_size > 0, "something has arrived")
    connection.close()  # in the middle
    offset = int(asked.ask("HEAD", APART)[1][OFFSET])
    assert 0 < offset <= 3 << 19
    assert asked.put(CONTENT[offset:], offset=offset) == 200
    assert asked.ask("HEAD", APART)[1][OFFSET] == str(APART.size)
    path = asked.incoming.claim("A", APART)
    assert path is not None
    assert path.read_bytes() == CONTENT


def test_another_offset_than_the_next_is_answered_with_the_next(asked: Served) -> None:
    status, headers, _ = asked.ask("PATCH", APART, 5, CONTENT[5:])
    assert (status, headers[OFFSET]) == (409, "0")
    assert asked.put(CONTENT[:-1]) == 409  # less than the rest: nothing of it is taken
    assert asked.put(CONTENT + b"x") == 409
    assert asked.put(CONTENT) == 200
    status, headers, _ = asked.ask("PATCH", APART, 0, CONTENT)  # the same request once more
    assert (status, headers[OFFSET]) == (409, str(APART.size))


def test_other_bytes_than_were_said_are_not_taken(asked: Served) -> None:
    assert asked.put(CONTENT[:-1] + b"?") == 422
    assert asked.ask("HEAD", APART)[1][OFFSET] == "0"
    assert asked.incoming.claim("A", APART) is None


def test_a_file_larger_than_any_answer_is_refused_before_it_is_sent(asked: Served) -> None:
    large = Apart(APART.sha256, len(CONTENT) + 1)
    assert asked.ask("HEAD", large)[0] == 413
    assert asked.ask("PATCH", large, 0, b"", **{"Content-Length": str(large.size)})[0] == 413


def test_a_site_reads_what_it_was_sent_and_writes_its_own_answers(asked: Served) -> None:
    assert asked.ask("GET", asked.model, site="B")[0] == 404
    assert asked.ask("HEAD", APART, site="B")[0] == 403
    assert asked.ask("PATCH", APART, 0, CONTENT, site="B")[0] == 403
    assert asked.ask("GET", APART)[0] == 404  # no order speaks of it
    asked.put(CONTENT)
    assert asked.ask("GET", APART)[0] == 404  # what arrived is not given out


def test_an_order_that_is_answered_or_dropped_lends_and_expects_nothing(served: Served) -> None:
    served.model = served.outgoing.write({"image/w": np.zeros(600_000, np.float32)}, "zeros")
    assert served.ask("GET", served.model)[0] == 404
    assert served.ask("HEAD", APART)[0] == 403


@pytest.mark.parametrize("method", ["GET", "HEAD", "PATCH"])
def test_whoever_does_not_sign_as_the_site_is_turned_away(asked: Served, method: str) -> None:
    apart = asked.model if method == "GET" else APART
    body = b"x" if method == "PATCH" else None
    request = Request(method, "A", apart, 0)

    def status(**changed: str) -> int:
        return asked.ask(method, apart, 0, body, **changed)[0]

    assert asked.ask(method, apart, 0, body, key="other")[0] == 401  # a key that is not registered
    assert asked.ask(method, apart, 0, body, site="other")[0] == 401  # a site that is not either
    assert asked.ask(method, apart, 0, body, site="A", key="B")[0] == 401
    assert asked.ask(method, apart, 0, body, at=time.time() - 320)[0] == 401
    assert asked.ask(method, apart, 0, body, at=time.time() + 20)[0] == 401
    assert status(**{SITE: "B"}) == 401
    assert status(**{SIZE: str(apart.size - 1)}) == 401
    assert status(**{SIZE: "-1"}) == 401
    assert status(**{OFFSET: "1"}) == 401
    assert status(**{OFFSET: "1e3"}) == 401
    assert status(**{TIME: "nan"}) == 401
    assert status(**{SIGNATURE: "AAAA"}) == 401
    assert status(**{SIGNATURE: "?"}) == 401
    signed = request.sign(asked.keys["A"], time.time())
    # A signature is for one method and one file.
    for other in {"GET", "HEAD", "PATCH"} - {method}:
        assert asked.send(other, request.path, signed, b"x" if other == "PATCH" else None)[0] == 401
    assert asked.send(method, f"/v1/tensors/{'0' * 64}", signed, body)[0] == 401
    assert asked.send(method, request.path, {}, body)[0] == 401


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_not_there(asked: Served, method: str) -> None:
    assert asked.ask(method, asked.model, 0, b"")[0] == 405


@pytest.mark.parametrize(
    "path",
    [
        "/v1/tensors/",
        "/v1/tensors",
        f"/v1/tensors/{'0' * 63}",
        f"/v1/tensors/{'0' * 65}",
        f"/v1/tensors/{'A' * 64}",
        f"/v1/tensors/{'0' * 64}/",
        f"/v1/tensors/{'0' * 64}/x",
        f"/v1/tensors/../tensors/{'0' * 64}",
        f"/v1/tensors/%2e%2e/{'0' * 64}",
        f"/v1/tensors//{'0' * 64}",
        "/v1/tensors/../../etc/passwd",
        f"/v1/tensors/{'0' * 61}%2e%2e",
    ],
)
def test_no_path_but_a_hash_leads_here(asked: Served, path: str) -> None:
    headers = Request("GET", "A", asked.model, 0).sign(asked.keys["A"], time.time())
    assert asked.send("GET", path, headers)[0] in (401, 404)
    assert asked.send("PATCH", path, headers, b"x")[0] in (401, 404)


def test_a_body_without_a_length_is_refused(asked: Served) -> None:
    headers = Request("PATCH", "A", APART, 0).sign(asked.keys["A"], time.time())
    path = f"/v1/tensors/{APART.sha256}"
    assert asked.send("PATCH", path, headers | {"Transfer-Encoding": "chunked"}, b"0\r\n\r\n")[0] == 411
