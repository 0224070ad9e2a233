"""The one public port: TLS, the Fleet API and the health check, and nothing else, whatever is asked of it."""

import posixpath
import re
import shutil
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import pytest
from cryptography.hazmat.primitives import serialization
from federation import wait_until

from fedpath.core.asgi import Receive, Scope, Send
from fedpath.core.errors import ConfigError
from fedpath.core.files import write_bytes
from fedpath.server import certificates, renewal
from fedpath.server.listener import BODY_LIMIT, Listener
from fedpath.server.provision import _pem


@dataclass
class App:
    """An application that would do anything for anybody, and resolves paths as generously as it can."""

    reached: list[str] = field(default_factory=list)
    received: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": message["type"] + ".complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        self.reached.append(posixpath.normpath(unquote(unquote(scope["path"])).replace("\\", "/").replace("//", "/")))
        more = scope["method"] != "GET"
        while more:
            message = await receive()
            self.received += len(message.get("body", b""))
            more = message.get("more_body", False)
        body = scope["path"].encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@dataclass
class Served:
    app: App
    port: int
    context: ssl.SSLContext

    def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send bytes as they are; return the status (0: the connection was closed without one) and the rest."""
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=10) as plain,
            self.context.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            connection.sendall(request)
            answer = b""
            try:
                while not _is_whole(answer) and (piece := connection.recv(65536)):
                    answer += piece
            except (ssl.SSLError, ConnectionResetError):
                pass  # closed without ceremony, after what it had to say
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split(b" ")[1]) if head.startswith(b"HTTP/1.1 ") else 0, body

    def request(self, path: str, method: str = "GET", headers: dict[str, str] | None = None, body: bytes = b"") -> int:
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        return self.ask("\r\n".join(lines).encode() + b"\r\n\r\n" + body)[0]

    def post(self, path: str, body: bytes = b"") -> int:
        return self.request(path, "POST", {"Content-Length": str(len(body))}, body)


def _is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return bool(end) and length is not None and len(body) >= int(length[1])


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """server.crt, server.key, ca.crt, and the key of somebody else."""
    folder = tmp_path_factory.mktemp("credentials")
    authority_key, key = certificates.new_key(), certificates.new_key()
    authority = certificates.make_authority("test", authority_key)
    certificate = certificates.make_server_certificate("localhost", key.public_key(), authority, authority_key)
    certificates.write_key(folder / "server.key", key)
    certificates.write_key(folder / "other.key", certificates.new_key())
    write_bytes(folder / "server.crt", _pem(certificate))
    write_bytes(folder / "ca.crt", _pem(authority))
    return folder


def listen(credentials: Path, *, host: str = "127.0.0.1", port: int = 0, key: str = "server.key") -> Listener:
    return Listener(host=host, port=port, certificate=credentials / "server.crt", key=credentials / key)


@pytest.fixture(scope="module")
def listening(credentials: Path) -> Iterator[Served]:
    app = App()
    listener = listen(credentials)
    listener.start(app)
    yield Served(app, listener.port, ssl.create_default_context(cafile=str(credentials / "ca.crt")))
    listener.stop()


@pytest.fixture
def served(listening: Served) -> Served:
    listening.app.reached.clear()
    listening.app.received = 0
    return listening


def test_the_fleet_and_the_health_check_pass(served: Served) -> None:
    assert served.request("/health") == 200
    assert served.post("/v1/fleet/pull-messages", b"x" * 1000) == 200
    assert served.post("/v1/fleet/activate-node") == 200
    assert served.request("/v1/fleet/anything?with=query") == 200
    assert served.app.reached == [
        "/health",
        "/v1/fleet/pull-messages",
        "/v1/fleet/activate-node",
        "/v1/fleet/anything",
    ]
    assert served.app.received == 1000


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1/control/start-run",
        "/v1/control",
        "/v1/runtime/pull-messages",
        "/docs",
        "/redoc",
        "/openapi.json",
        "/metrics",
        "/v1/fleet",
        "/v1/fleet/",
        "/v1/fleet/x/y",
        "/v1/fleetx/y",
        "/v1/Fleet/x",
        "/V1/FLEET/x",
        "/health/",
        "/healthz",
        "/health/../v1/control/start-run",
        "*",
    ],
)
def test_everything_else_is_not_there(served: Served, path: str) -> None:
    assert served.post(path) == 404
    assert served.request(path) in (400, 404)
    assert served.app.reached == []


@pytest.mark.parametrize(
    "path",
    [
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/.%2E/control/start-run",
        "/v1/fleet/%252e%252e/control/start-run",
        "/v1/fleet/..%2fcontrol/start-run",
        "/v1/fleet/..%5ccontrol/start-run",
        "/v1/fleet/..\\control/start-run",
        "/v1/fleet/x/../../control/start-run",
        "/v1/fleet/./../control/start-run",
        "/v1/fleet//../../control/start-run",
        "//v1/control/start-run",
        "//v1/fleet/../control/start-run",
        "/v1//control/start-run",
        "/v1/control/start-run?/v1/fleet/",
        "/v1/control/start-run#/v1/fleet/",
        "/v1/control/start-run;/v1/fleet/",
        "https://localhost/v1/control/start-run",
        "https://localhost/v1/fleet/../control/start-run",
        "/v1/fleet/%00/../../control",
        "/v1/fleet/..;/control/start-run",
    ],
)
def test_no_spelling_of_a_path_leads_out_of_the_fleet(served: Served, path: str) -> None:
    served.post(path)
    assert [reached for reached in served.app.reached if not reached.startswith("/v1/fleet/")] == []


def test_no_header_leads_out_of_the_fleet(served: Served) -> None:
    headers = {
        "X-Original-URL": "/v1/control/start-run",
        "X-Rewrite-URL": "/v1/control/start-run",
        "X-Forwarded-Prefix": "/v1/control",
        "X-HTTP-Method-Override": "POST",
        "Content-Length": "0",
    }
    assert served.request("/v1/fleet/x", "POST", headers) == 200
    assert served.app.reached == ["/v1/fleet/x"]
    assert served.request("/v1/control/x", "POST", headers) == 404


def test_a_body_without_a_length_is_refused(served: Served) -> None:
    chunked = {"Transfer-Encoding": "chunked"}
    assert served.request("/v1/fleet/x", "POST", chunked, b"5\r\nhello\r\n0\r\n\r\n") == 411
    assert served.request("/v1/fleet/x", "POST") == 411
    assert served.request("/v1/fleet/x", "PUT", chunked) == 411
    assert served.request("/v1/fleet/x", "GET", chunked, b"5\r\nhello\r\n0\r\n\r\n") == 411
    assert served.app.reached == []


def test_a_length_beside_chunks_does_not_hide_them(served: Served) -> None:
    both = {"Content-Length": "5", "Transfer-Encoding": "chunked"}
    assert served.request("/v1/fleet/x", "POST", both, b"a\r\n0123456789\r\n0\r\n\r\n") in (400, 411)
    assert served.app.received == 0


@pytest.mark.parametrize("length", ["-1", "+5", "0x5", "5, 5", "1e3", "٥"])
def test_a_length_that_is_no_number_is_refused(served: Served, length: str) -> None:
    assert served.request("/v1/fleet/x", "POST", {"Content-Length": length}, b"hello") in (400, 411)
    assert served.app.received == 0


def test_a_body_over_the_limit_is_refused_before_it_is_read(served: Served) -> None:
    # Nothing of the body is sent: were it read first, this would wait for it and not answer.
    for length in (BODY_LIMIT + 1, 2**40, 10**30):
        assert served.request("/v1/fleet/x", "POST", {"Content-Length": str(length)}) in (400, 413)
    assert served.request("/v1/fleet/x", "POST", {"Content-Length": str(BODY_LIMIT + 1)}) == 413
    assert served.app.reached == []


def test_a_body_of_the_limit_passes(served: Served) -> None:
    assert served.post("/v1/fleet/x", b"x" * BODY_LIMIT) == 200
    assert served.app.received == BODY_LIMIT


def test_a_websocket_is_not_opened(served: Served) -> None:
    upgrade = (
        b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close, Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert served.ask(upgrade % b"/v1/fleet/x") == (200, b"/v1/fleet/x")  # answered as the plain request it also is
    assert served.ask(upgrade % b"/v1/control/x")[0] == 404


def test_the_answer_does_not_name_the_software(served: Served) -> None:
    with (
        socket.create_connection(("127.0.0.1", served.port), timeout=10) as plain,
        served.context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        head = connection.recv(65536).lower()
    assert b"server:" not in head
    assert b"date:" in head  # the hospitals compare their clocks with it


def test_only_tls_is_spoken(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as plain:
        plain.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        try:
            answer = plain.recv(65536)
        except ConnectionResetError:
            answer = b""
    assert not answer.startswith(b"HTTP")
    assert served.app.reached == []


def test_a_port_in_use_is_named(credentials: Path, served: Served) -> None:
    with pytest.raises(
        ConfigError, match=rf"cannot listen on 127\.0\.0\.1:{served.port}: Address already in use"
    ) as caught:
        listen(credentials, port=served.port)
    assert "server.listen" in caught.value.remedy


def test_a_host_that_is_not_this_machines_is_named(credentials: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1:0"):
        listen(credentials, host="192.0.2.1")
    with pytest.raises(ConfigError, match=r"cannot listen on no\.such\.host\.invalid:0"):
        listen(credentials, host="no.such.host.invalid")


def test_a_key_of_another_certificate_is_found_before_serving(credentials: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"server\.crt: the server's certificate cannot be used") as caught:
        listen(credentials, key="other.key")
    assert "fedpath provision" in caught.value.remedy
    with pytest.raises(ConfigError, match="cannot be used"):
        listen(credentials, key="absent.key")
    (tmp_path / "server.crt").write_text("no certificate")
    with pytest.raises(ConfigError, match="cannot be used"):
        Listener(host="127.0.0.1", port=0, certificate=tmp_path / "server.crt", key=credentials / "server.key")


def test_a_stopped_listener_frees_its_port(credentials: Path) -> None:
    listener = listen(credentials)
    port = listener.port
    listener.start(App())
    listener.stop()
    again = listen(credentials, port=port)
    assert again.port == port
    again.stop()  # never started: stopping it is fine too


def test_a_renewed_certificate_is_shown_to_whoever_connects_next(
    credentials: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal, "_LOOK_S", 0.02)
    folder = Path(shutil.copytree(credentials, tmp_path / "credentials"))
    listener = listen(folder)
    listener.start(App())
    try:
        first = _shown(listener.port, folder)
        with _connected(listener.port, folder) as before:
            # A certificate whose key has not come yet is none: the old one is shown as long.
            authority_key, key = certificates.new_key(), certificates.new_key()
            authority = certificates.make_authority("test", authority_key)
            renewed = certificates.make_server_certificate("localhost", key.public_key(), authority, authority_key)
            write_bytes(folder / "server.crt", _pem(renewed))
            assert _shown(listener.port, folder) == first
            certificates.write_key(folder / "server.key", key)
            write_bytes(folder / "ca.crt", _pem(authority))
            wait_until(lambda: _shows(listener.port, folder), "the new certificate is shown", deadline_s=30)
            assert _shown(listener.port, folder) == renewed.public_bytes(serialization.Encoding.DER)
            before.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert before.recv(100).startswith(b"HTTP/1.1 200")
    finally:
        listener.stop()


@contextmanager
def _connected(port: int, folder: Path) -> Iterator[ssl.SSLSocket]:
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        yield connection


def _shown(port: int, folder: Path) -> bytes | None:
    with _connected(port, folder) as connection:
        return connection.getpeercert(binary_form=True)


def _shows(port: int, folder: Path) -> bool:
    """Whether it shows a certificate of this authority."""
    try:
        return _shown(port, folder) is not None
    except ssl.SSLCertVerificationError:
        return False
