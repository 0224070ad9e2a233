"""GET /metrics, /health and /health/ready over HTTP, in threads of their own."""

import json
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from types import TracebackType
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

from fedpath.core.errors import ConfigError
from fedpath.core.monitoring.health import Health
from fedpath.core.monitoring.metrics import Metrics

_PATIENCE_S = 10.0
"""A client that says nothing for so long is hung up on."""
_TEXT = ("Content-Type", "text/plain; charset=utf-8")


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 32


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE_S

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Say nothing: probes come every few seconds."""


class WebPort:
    """Serves while it is entered.

    Args:
        host: address to listen on.
        port: 0 takes a free one.
        metrics: are given under /metrics.
        health: under /health and /health/ready.

    Raises:
        ConfigError: the port cannot be taken.
    """

    def __init__(self, host: str, port: int, metrics: Metrics, health: Health) -> None:
        kind = _Server6 if ":" in host else _Server
        try:
            self._server = make_server(host, port, _application(metrics, health), kind, _Handler)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port}: {error.strerror or error}",
                remedy="end what uses that port, or give another --metrics-port or --monitor-host",
            ) from None
        self.port = int(self._server.server_port)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="metrics", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _application(metrics: Metrics, health: Health) -> Callable[..., Iterable[bytes]]:
    exported = make_wsgi_app(metrics.registry)

    def answer(environment: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environment.get("PATH_INFO", "")
        if environment.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            start_response("405 Method Not Allowed", [_TEXT, ("Allow", "GET, HEAD")])
            return [b"GET only\n"]
        if path == "/metrics":
            found: Iterable[bytes] = exported(environment, start_response)
            return found
        if path in ("/health", "/health/ready"):
            state = health.look()
            fine = state.ready if path == "/health/ready" else state.alive
            status = "200 OK" if fine else "503 Service Unavailable"
            start_response(status, [("Content-Type", "application/json"), ("Cache-Control", "no-store")])
            return [json.dumps(state.record()).encode() + b"\n"]
        start_response("404 Not Found", [_TEXT])
        return [b"/metrics, /health, /health/ready\n"]

    return answer
