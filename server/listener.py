"""The one port the outside sees: TLS, the Fleet API and the health check, bodies of bounded size, and files of arrays.

Everything else of the Flower app (operator and runtime calls, API documentation) answers 404 here, and nothing listens
elsewhere. A body over the limit is refused before it is buffered: Flower's largest request carries one 5 MiB chunk. A
file of arrays (`fedpath.server.tensors`) is never buffered, and how large it may be is decided there, by who sends it.
"""

import asyncio
import logging
import re
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import uvicorn

from fedpath.core.asgi import App, Receive, Scope, Send
from fedpath.core.errors import ConfigError, FederationError
from fedpath.server.renewal import Renewal, context_of

BODY_LIMIT = 8 * 1024 * 1024
_START_TIMEOUT_S = 30.0
# Plain names only: no `..`, no second slash, nothing that the app behind might read as another path.
_PUBLIC = re.compile(r"/v1/fleet/[a-z\-]+|/health")
_TENSORS = re.compile(r"/v1/tensors/[0-9a-f]{64}")


class FleetOnly:
    """ASGI filter: passes `/v1/fleet/<call>` and `/health`, and nothing larger than `BODY_LIMIT` bytes.

    Args:
        app: behind it.
        tensors: answers `/v1/tensors/<sha256>`; nothing does without.
    """

    def __init__(self, app: App, tensors: App | None = None) -> None:
        self._app, self._tensors = app, tensors
        self.refused: Counter[str] = Counter(dict.fromkeys(("not_served", "length", "too_large"), 0))
        """Requests that were answered here, unread."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one connection on, or answer it here."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        tensors = self._tensors if scope["type"] == "http" and _TENSORS.fullmatch(scope["path"]) else None
        if tensors is None and (scope["type"] != "http" or not _PUBLIC.fullmatch(scope["path"])):
            return await self._refuse(send, "not_served", 404)
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        # Flower's client always states the length; a body of unknown length could grow without bound.
        bodiless = ("GET",) if tensors is None else ("GET", "HEAD")
        if b"transfer-encoding" in headers or (scope["method"] not in bodiless and not length.isdigit()):
            return await self._refuse(send, "length", 411)
        if tensors is not None:
            return await tensors(scope, receive, send)
        if length and int(length) > BODY_LIMIT:
            return await self._refuse(send, "too_large", 413)
        return await self._app(scope, receive, send)

    async def _refuse(self, send: Send, reason: str, status: int) -> None:
        self.refused[reason] += 1
        await answer(send, status)


async def answer(send: Send, status: int, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """Answer a request with a status and no body."""
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0"), *headers]})
    await send({"type": "http.response.body", "body": b""})


class Listener:
    """A TLS listener in a thread of its own; a certificate that is renewed meanwhile is taken up.

    Args:
        host: address to bind.
        port: port to bind; taken at once, so that a used port is found before anything else starts.
        certificate: PEM chain of the server.
        key: PEM private key of the server.

    Raises:
        ConfigError: the address cannot be bound, or certificate and key do not fit.
    """

    def __init__(self, *, host: str, port: int, certificate: Path, key: Path) -> None:
        self._certificate, self._key = certificate, key
        try:
            context_of(certificate, key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"{certificate}: the server's certificate cannot be used: {error}",
                remedy="make it again with `fedpath provision`",
            ) from None
        self._socket = _bind(host, port)
        self._filter: FleetOnly | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._renewal: Renewal | None = None

    @property
    def port(self) -> int:
        """The port that is bound."""
        return int(self._socket.getsockname()[1])

    @property
    def is_up(self) -> bool:
        """Whether connections are accepted."""
        return (
            self._thread is not None and self._thread.is_alive() and self._server is not None and self._server.started
        )

    @property
    def refused(self) -> Mapping[str, int]:
        """Requests that were refused unread, by "not_served", "length" and "too_large"."""
        return {} if self._filter is None else dict(self._filter.refused)

    def start(self, app: App, tensors: App | None = None) -> None:
        """Serve ``app``, and ``tensors`` beside it, and return when connections are accepted."""
        self._filter = FleetOnly(app, tensors)
        server = uvicorn.Server(
            uvicorn.Config(
                self._filter,
                log_config=None,
                access_log=False,
                ws="none",
                ssl_certfile=self._certificate,
                ssl_keyfile=self._key,
                timeout_graceful_shutdown=2,
                server_header=False,
            )
        )
        logger = logging.getLogger("uvicorn.error")
        logger.setLevel(logging.ERROR)
        logger.addFilter(_is_news)
        failed = threading.Event()

        def serve() -> None:
            try:
                asyncio.run(server.serve(sockets=[self._socket]))
            finally:
                failed.set()

        self._server, self._thread = server, threading.Thread(target=serve, name="fleet-listener", daemon=True)
        self._thread.start()
        waited = 0.0
        while not server.started:
            if failed.wait(0.02) or (waited := waited + 0.02) > _START_TIMEOUT_S:
                raise FederationError("the fleet listener did not start", remedy="look at the coordinator's log")
        if server.config.ssl is not None:
            self._renewal = Renewal(self._certificate, self._key, server.config.ssl)

    def stop(self) -> None:
        """Stop serving; open requests get two seconds."""
        if self._renewal is not None:
            self._renewal.stop()
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join()
        self._socket.close()


def _is_news(record: logging.LogRecord) -> bool:
    """A site whose network is cut in the middle of a file is none: it asks for the rest."""
    return "without completing response" not in record.getMessage()


def _bind(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(128)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            remedy="end what uses that port, or change server.address (or server.listen) in federation.toml",
        ) from None
    return bound
