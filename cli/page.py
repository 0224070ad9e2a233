"""A role's web page on a port: flags, the port itself, and uvicorn in a thread of its own.

By default it costs a bound socket and a thread that sleeps: the web server is imported and started when the first
browser connects. Nothing that goes wrong in that thread holds the role's work up.
"""

import ipaddress
import os
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from fedpath.core.errors import ConfigError
from fedpath.core.page.asgi import App

SERVER_PORT, OFF = 8470, -1
_PATIENCE_S = 3.0

PageHost = Annotated[
    str, typer.Option(metavar="HOST", help="Address of the web page; other than loopback only with a token.")
]
PageToken = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="File with the token that a visitor of the web page has to know."),
]


@contextmanager
def page_served(
    make: Callable[[], App], role: str, *, host: str, port: int | None, preferred: int, token_file: Path | None
) -> Iterator[str | None]:
    """Serve a page while the body runs; yield its address, or None where there is none.

    Args:
        make: returns the page's app; called in the page's thread, when the first browser is there.
        role: "server" or "client".
        host: to listen on.
        port: to listen on, 0 for a free one, -1 for no page; None for ``preferred``, or a free one where that is taken.
        preferred: see there.
        token_file: what a visitor has to know.

    Raises:
        ConfigError: the port cannot be had, the token cannot be read, or a host other than loopback has none.
    """
    if port == OFF:
        yield None
        return
    token = _token(host, token_file)
    bound = _bind(host, port, preferred)
    served = _Served(bound, make, role, token)
    name = f"[{host}]" if ":" in host else host
    try:
        yield f"http://{name}:{bound.getsockname()[1]}/"
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


def _bind(host: str, port: int | None, preferred: int) -> socket.socket:
    tried = [preferred, 0] if port is None else [port]
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

    def __init__(self, bound: socket.socket, make: Callable[[], App], role: str, token: str | None) -> None:
        self._bound, self._make, self._role, self._token = bound, make, role, token
        self._wake_reader, self._wake = os.pipe()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"{role} page", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it; who is connected is cut off."""
        self._over.set()
        os.close(self._wake)
        self._thread.join(_PATIENCE_S)
        os.close(self._wake_reader)
        self._bound.close()

    def _work(self) -> None:
        with selectors.DefaultSelector() as waiting:
            for one in (self._bound, self._wake_reader):
                waiting.register(one, selectors.EVENT_READ)
            waiting.select()
        if not self._over.is_set():
            import asyncio

            asyncio.run(self._serve())

    async def _serve(self) -> None:
        import asyncio
        import logging

        import uvicorn

        from fedpath.core.page.guard import Guard

        server = uvicorn.Server(
            uvicorn.Config(
                Guard(self._make(), self._role, self._token),
                log_config=None,
                access_log=False,
                ws="none",
                lifespan="off",
                proxy_headers=False,
                server_header=False,
                limit_concurrency=100,
                timeout_graceful_shutdown=1,
            )
        )
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        loop = asyncio.get_running_loop()

        def end() -> None:
            loop.remove_reader(self._wake_reader)
            server.should_exit = True

        loop.add_reader(self._wake_reader, end)  # readable when the other end is closed
        await server.serve(sockets=[self._bound])
