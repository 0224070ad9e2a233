"""A role's web page on a port: flags, the port itself, and uvicorn in a thread of its own.

Until the first browser connects it costs a bound socket and a thread that sleeps; the web server is started then.
Nothing that goes wrong in that thread holds the role's work up.
"""

import ipaddress
import os
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, TypeVar

import typer

from fedpath.core.asgi import App
from fedpath.core.errors import ConfigError

if TYPE_CHECKING:
    from fedpath.core.events import EventLog
    from fedpath.core.page.log import LogTail

PORT, OFF = 8470, -1
_PATIENCE_S = 5.0

PagePort = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help=f"Port of the web page, -1 for no page. By default {PORT}, or a free one where that is taken.",
        show_default=False,
    ),
]
PageHost = Annotated[
    str, typer.Option(metavar="HOST", help="Address of the web page; other than loopback only with a token.")
]
PageToken = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="File with the token that a visitor of the web page has to know."),
]


class Page(Protocol):
    """A role's page."""

    log: "LogTail"
    over: threading.Event
    """Set when it is not served any more: who reads live data is let go."""


P = TypeVar("P", bound=Page)


@contextmanager
def page_served(
    page: P,
    build: Callable[[P], App],
    role: Literal["server", "client"],
    events: "EventLog",
    *,
    host: str,
    port: int | None,
    token_file: Path | None,
) -> Iterator[None]:
    """Serve a page while the body runs, and tell its address.

    Args:
        page: of the role; it listens to ``events``.
        build: returns what answers a browser; called if there is a page.
        role: whose page it is.
        events: where the address is told.
        host: to listen on.
        port: to listen on, 0 for a free one, -1 for no page; None for `PORT`, or a free one where that is taken.
        token_file: what a visitor has to know.

    Raises:
        ConfigError: the port cannot be had, the token cannot be read, or a host other than loopback has none.
    """
    if port == OFF:
        yield
        return
    from fedpath.core.page.guard import Guard

    token = _token(host, token_file)
    bound = _bind(host, port)
    if events.path is not None:
        page.log.take_up(events.path)
    name = f"[{host}]" if ":" in host else host
    served = _Served(bound, page, Guard(build(page), role, token))
    try:
        events.emit("page", address=f"http://{name}:{bound.getsockname()[1]}/")
        yield
    finally:
        served.stop()


def _token(host: str, file: Path | None) -> str | None:
    from fedpath.core.page.guard import read_token

    if file is not None:
        return read_token(file)
    if not _is_loopback(host):
        raise ConfigError(
            f"--page-host {host}: others than this machine could use the page without a token",
            remedy="name a file with one: --page-token-file FILE (openssl rand -hex 32 > FILE)",
        )
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bind(host: str, port: int | None) -> socket.socket:
    tried = [PORT, 0] if port is None else [port]
    for number in tried:
        try:
            family = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0][0]
            bound = socket.socket(family, socket.SOCK_STREAM)
            try:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                bound.bind((host, number))
                bound.listen(64)
            except OSError:
                bound.close()
                raise
        except OSError as error:
            if number != tried[-1]:
                continue
            raise ConfigError(
                f"the page cannot listen on {host}:{number}: {error.strerror or error}",
                remedy="end what uses that port, choose another with --page-port, or go without: --page-port -1",
            ) from None
        return bound
    raise AssertionError("one of the ports was tried")


class _Served:
    """The thread."""

    def __init__(self, bound: socket.socket, page: Page, app: App) -> None:
        self._bound, self._page, self._app = bound, page, app
        self._wake_reader, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._work, name="page", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it; who is connected is let go."""
        self._page.over.set()
        os.close(self._wake)
        self._thread.join(_PATIENCE_S)
        os.close(self._wake_reader)
        self._bound.close()

    def _work(self) -> None:
        with selectors.DefaultSelector() as waiting:
            for one in (self._bound, self._wake_reader):
                waiting.register(one, selectors.EVENT_READ)
            waiting.select()
        if not self._page.over.is_set():
            import asyncio

            try:
                asyncio.run(self._serve())
            finally:
                self._bound.close()  # nobody waits at a door behind which there is no one any more

    async def _serve(self) -> None:
        import asyncio
        import logging

        import uvicorn

        server = uvicorn.Server(
            uvicorn.Config(
                self._app,
                log_config=None,
                access_log=False,
                ws="none",
                lifespan="off",
                proxy_headers=False,
                server_header=False,
                limit_concurrency=100,
                timeout_graceful_shutdown=2,
            )
        )
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        loop = asyncio.get_running_loop()

        def end() -> None:
            loop.remove_reader(self._wake_reader)
            server.should_exit = True

        loop.add_reader(self._wake_reader, end)  # readable when the other end is closed
        await server.serve(sockets=[self._bound])
