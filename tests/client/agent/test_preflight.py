"""Before joining: each reason for which a coordinator cannot be talked to, against real TLS servers."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from federation import free_port

from fedpath.client.agent.preflight import (
    UnreachableError,
    authority_context,
    check_clock,
    check_coordinator,
    wait_for_coordinator,
)
from fedpath.core.errors import ConfigError, ConnectionFailedError, StoppedError
from fedpath.core.files import write_bytes
from fedpath.server import certificates


@dataclass(frozen=True)
class Credentials:
    """An authority and a certificate of it for 127.0.0.1."""

    folder: Path

    @property
    def authority(self) -> Path:
        return self.folder / "ca.crt"

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "server.crt", self.folder / "server.key")
        return context


def make_credentials(folder: Path, host: str = "127.0.0.1") -> Credentials:
    authority_key, key = certificates.new_key(), certificates.new_key()
    authority = certificates.make_authority("test", authority_key)
    certificate = certificates.make_server_certificate(host, key.public_key(), authority, authority_key)
    certificates.write_key(folder / "server.key", key)
    write_bytes(folder / "server.crt", certificate.public_bytes(Encoding.PEM))
    write_bytes(folder / "ca.crt", authority.public_bytes(Encoding.PEM))
    return Credentials(folder)


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    return make_credentials(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    return make_credentials(tmp_path_factory.mktemp("theirs"))


@contextmanager
def serving(
    credentials: Credentials | None, *, status: int = 200, date: str | None = "now", port: int = 0
) -> Iterator[str]:
    """A small server, with TLS or (without credentials) without; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(status if self.path == "/health" else 500)
            if date is not None:
                self.send_header("Date", self.date_time_string() if date == "now" else date)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # clients that do not like our certificate hang up

    server = Server(("127.0.0.1", port), Handler)
    if credentials is not None:
        server.socket = credentials.server_context().wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def fault(address: str, authority: Path, shift: float = 0.0) -> ConnectionFailedError:
    with pytest.raises(ConnectionFailedError) as caught:
        check_coordinator(address, authority, clock=lambda: time.time() + shift)
    assert address in caught.value.message
    assert caught.value.exit_code == 4
    assert "\n" not in caught.value.message
    return caught.value


def test_the_right_coordinator_passes(credentials: Credentials) -> None:
    with serving(credentials) as address:
        check_coordinator(address, credentials.authority)


def test_nobody_there(credentials: Credentials) -> None:
    address = f"127.0.0.1:{free_port()}"
    error = fault(address, credentials.authority)
    assert isinstance(error, UnreachableError)
    assert "cannot be reached" in error.message
    assert "fedpath server start" in error.remedy


def test_a_name_that_does_not_exist(credentials: Credentials) -> None:
    assert isinstance(fault("no.such.host.invalid:8443", credentials.authority), UnreachableError)


def test_a_server_that_hangs_up(credentials: Credentials) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: listener.accept()[0].close())
        thread.start()
        fault(f"127.0.0.1:{listener.getsockname()[1]}", credentials.authority)
        thread.join()


def test_another_authority(credentials: Credentials, strangers: Credentials) -> None:
    with serving(strangers) as address:
        error = fault(address, credentials.authority)
    assert not isinstance(error, UnreachableError)  # waiting does not help
    assert "is not this federation's" in error.message
    assert "ca.crt" in error.remedy


def test_a_certificate_for_another_host(tmp_path: Path) -> None:
    other = make_credentials(tmp_path, host="elsewhere.example.org")
    with serving(other) as address:
        error = fault(address, other.authority)
    assert "is not this federation's" in error.message


def test_a_certificate_that_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "SERVER_DAYS", 0)
    ended = make_credentials(tmp_path)
    with serving(ended) as address:
        error = fault(address, ended.authority)
    assert "is not valid at this machine's time" in error.message
    assert "NTP" in error.remedy


def test_a_port_without_tls(credentials: Credentials) -> None:
    with serving(None) as address:
        error = fault(address, credentials.authority)
    assert "does not speak TLS as expected" in error.message
    assert "kit.toml" in error.remedy


@pytest.mark.parametrize("status", [404, 502, 301, 204])
def test_somebody_else_answers(credentials: Credentials, status: int) -> None:
    with serving(credentials, status=status) as address:
        error = fault(address, credentials.authority)
    assert f"not as a fedpath coordinator (HTTP {status})" in error.message


@pytest.mark.parametrize(("shift", "words"), [(10, "10 s ahead of"), (-400, "400 s behind"), (3600, "3600 s ahead of")])
def test_a_clock_too_far_off(credentials: Credentials, shift: float, words: str) -> None:
    with serving(credentials) as address:
        error = fault(address, credentials.authority, shift)
    direction = words.partition(" s ")[2]
    off = float(error.message.split("clock is ")[1].split(" s ")[0])
    assert direction in error.message
    assert off == pytest.approx(abs(shift), abs=1)  # the Date header is whole seconds
    assert "NTP" in error.remedy


@pytest.mark.parametrize("shift", [2, 0, -60, -290])
def test_a_clock_that_the_coordinator_accepts(credentials: Credentials, shift: float) -> None:
    with serving(credentials) as address:
        check_coordinator(address, credentials.authority, clock=lambda: time.time() + shift)


@pytest.mark.parametrize("date", [None, "", "yesterday", "99 Foo 20xx"])
def test_without_a_date_the_clock_is_left_to_the_coordinator(credentials: Credentials, date: str | None) -> None:
    with serving(credentials, date=date) as address:
        check_coordinator(address, credentials.authority, clock=lambda: 0.0)


def test_the_window_is_flowers() -> None:
    # A signature counts from 5 s in the coordinator's future to 305 s in its past; a second is left on both sides.
    date, now = "Thu, 01 Jan 2026 00:00:00 GMT", datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    for shift in (4.4, -299.4):
        check_clock("x:1", date, now + shift)
    for shift in (4.6, -299.6):
        with pytest.raises(ConnectionFailedError):
            check_clock("x:1", date, now + shift)


def test_the_summer_time_of_this_machine_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    date, now = "Thu, 01 Jan 2026 00:00:00 -0000", datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        check_clock("x:1", date, now)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("content", [b"", b"no certificate", None])
def test_an_authority_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ca.crt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"ca\.crt: no readable certificate") as caught:
        authority_context(path)
    assert "kit" in caught.value.remedy


def test_only_the_kits_authority_is_trusted(credentials: Credentials) -> None:
    context = authority_context(credentials.authority)
    assert len(context.get_ca_certs()) == 1
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname


def test_it_waits_for_a_coordinator_that_comes_later(credentials: Credentials) -> None:
    port, said = free_port(), []
    arrived = threading.Event()
    leave = threading.Event()

    def come_later() -> None:
        arrived.wait(10)
        with serving(credentials, port=port):
            leave.wait(30)

    def waiting(reason: str) -> None:
        said.append(reason)
        arrived.set()

    server = threading.Thread(target=come_later)
    server.start()
    try:
        wait_for_coordinator(
            f"127.0.0.1:{port}", credentials.authority, wait_s=20, stop=threading.Event(), waiting=waiting
        )
    finally:
        leave.set()
        server.join()
    assert len(said) == 1
    assert "cannot be reached" in said[0]


def test_waiting_ends(credentials: Credentials) -> None:
    said: list[str] = []
    with pytest.raises(UnreachableError):
        wait_for_coordinator(
            f"127.0.0.1:{free_port()}",
            credentials.authority,
            wait_s=0,
            stop=threading.Event(),
            waiting=said.append,
        )
    assert said == []


def test_waiting_can_be_stopped(credentials: Credentials) -> None:
    stop = threading.Event()
    with pytest.raises(StoppedError):
        wait_for_coordinator(
            f"127.0.0.1:{free_port()}",
            credentials.authority,
            wait_s=60,
            stop=stop,
            waiting=lambda _: stop.set(),
        )


def test_what_waiting_does_not_mend_is_said_at_once(credentials: Credentials, strangers: Credentials) -> None:
    with serving(strangers) as address, pytest.raises(ConnectionFailedError, match="not this federation's"):
        wait_for_coordinator(
            address,
            credentials.authority,
            wait_s=60,
            stop=threading.Event(),
            waiting=lambda reason: pytest.fail(reason),
        )


def test_a_proxy_that_is_not_there(credentials: Credentials, monkeypatch: pytest.MonkeyPatch) -> None:
    # httpx reads these variables; what matters is an error that names the address, and no traceback.
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("NO_PROXY", "")
    assert issubclass(httpx.ProxyError, httpx.TransportError)
    with serving(credentials) as address:
        assert isinstance(fault(address, credentials.authority), UnreachableError)
