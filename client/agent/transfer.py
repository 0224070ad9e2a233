"""Files of arrays to and from the coordinator, over as many connections as it takes.

See `fedpath.core.exchange.transfer`. A connection that breaks is opened again, and the file goes on where it stopped,
as long as bytes arrive now and then; so does one that an agent which was killed left half done. Bytes go from file to
socket and back a block at a time: a model of any size costs this process one block.
"""

import hashlib
import http.client
import shutil
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from fedpath.client.agent.kit import Kit
from fedpath.client.agent.preflight import authority_context, explain_transport_error
from fedpath.core.errors import ConnectionFailedError, RefusedError, StoppedError
from fedpath.core.exchange.parcel import map_arrays
from fedpath.core.exchange.transfer import BLOCK, OFFSET, Request
from fedpath.core.exchange.wire import Apart, Arrays

Progress = Callable[[str, int, int], None]
"""Told "fetching" or "sending", bytes that are over, and bytes of the whole; now and then, not for small files."""
_TIMEOUT_S = 30.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 10.0
_TELL_EVERY_S = 5.0
_OVER = frozenset({403, 404})
_RETRIED = frozenset({408, 409, 422, 429, 500, 502, 503, 504, 507})
_ANSWER = "answer.safetensors"
_PART = ".part"
_SPARE = 1 << 28
"""Bytes of disk that an order's file may not take."""


class RunOverError(Exception):
    """The coordinator no longer takes answers for this run."""


class Carrier(Protocol):
    """What an agent needs of this."""

    @property
    def answer_file(self) -> Path:
        """Where the file of an answer is written to."""
        ...

    def fetch(self, apart: Apart) -> Arrays:
        """Return the arrays of an order."""
        ...

    def send(self, file: Path, apart: Apart) -> None:
        """Send the file of an answer."""
        ...


class Transfer:
    """See the module, and `Carrier`.

    Args:
        kit: the site's kit.
        folder: of nobody else.
        stop: set it to give up waiting for a coordinator that is away.
        away: told with the reason when a connection breaks, and with None when bytes move again.
        progress: see `Progress`.
        patience_s: how long nothing may move before giving up.
    """

    def __init__(
        self,
        kit: Kit,
        folder: Path,
        *,
        stop: threading.Event,
        away: Callable[[str | None], None],
        progress: Progress,
        patience_s: float = 300.0,
    ) -> None:
        self._kit, self._folder, self._stop = kit, folder, stop
        self._away, self._progress, self._patience_s = away, progress, patience_s
        self._context = authority_context(kit.authority)
        self._moved = self._told = 0.0
        self._is_away = False

    @property
    def answer_file(self) -> Path:
        """Where the file of an answer is written to."""
        return self._folder / _ANSWER

    def fetch(self, apart: Apart) -> Arrays:
        """Return the arrays of an order, mapped from a file that stays until the next one's is here.

        Raises:
            RunOverError: the coordinator took the order back meanwhile.
            RefusedError: there is no room for it, or it is no file of arrays.
            ConnectionFailedError: nothing moved for longer than ``patience_s``.
            StoppedError: ``stop`` was set while the coordinator was away.
        """
        path = self._folder / f"{apart.sha256}.safetensors"
        part = path.with_suffix(_PART)
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            for other in self._folder.iterdir():
                if other != part:
                    other.unlink()
            free = shutil.disk_usage(self._folder).free
            if apart.size > free - _SPARE:
                raise RefusedError(
                    f"site {self._kit.site} has no room for a model of {apart.size:,} bytes",
                    remedy=f"make room where {self._folder} is",
                )
            self._persist(lambda: self._fetch_rest(apart, part))
            part.replace(path)
        return map_arrays(path)

    def send(self, file: Path, apart: Apart) -> None:
        """Send the file of an answer; it is removed afterwards.

        Raises:
            RunOverError: the coordinator does not wait for it any more.
            ConnectionFailedError: nothing moved for longer than ``patience_s``, or the coordinator does not take it.
            StoppedError: ``stop`` was set while the coordinator was away.
        """
        try:
            self._persist(lambda: self._send_rest(apart, file))
        finally:
            file.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all: the run is over."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _fetch_rest(self, apart: Apart, part: Path) -> None:
        with part.open("a+b") as file:
            file.seek(0)
            digest, offset = hashlib.file_digest(file, "sha256"), file.tell()
            if offset < apart.size:
                with closing(self._connect()) as connection:
                    response = self._ask(connection, "GET", apart, offset)
                    for block in _blocks(response):
                        file.write(block)
                        digest.update(block)
                        offset += len(block)
                        self._note_move("fetching", offset, apart.size)
                if offset < apart.size:
                    raise http.client.IncompleteRead(b"", apart.size - offset)
            if digest.hexdigest() != apart.sha256:
                file.truncate(0)
                raise http.client.HTTPException("what arrived is damaged")

    def _send_rest(self, apart: Apart, path: Path) -> None:
        with closing(self._connect()) as connection, path.open("rb") as file:
            response = self._ask(connection, "HEAD", apart, 0)
            response.read()
            offset = int(response.headers[OFFSET])
            if offset == apart.size:
                return
            file.seek(offset)
            self._ask(connection, "PATCH", apart, offset, self._note_blocks(file, offset, apart.size)).read()

    def _note_blocks(self, file: BinaryIO, offset: int, size: int) -> Iterator[bytes]:
        """Yield the blocks of a file; another one is asked for when the one before has been sent."""
        while block := file.read(BLOCK):
            yield block
            offset += len(block)
            self._note_move("sending", offset, size)

    def _connect(self) -> http.client.HTTPSConnection:
        """Return a connection to the coordinator, through the proxy that the environment names for such."""
        host, _, port = self._kit.address.rpartition(":")
        proxy = None if proxy_bypass(host) else getproxies().get("https")
        if proxy is None:
            return http.client.HTTPSConnection(host, int(port), context=self._context, timeout=_TIMEOUT_S)
        via = urlsplit(proxy if "//" in proxy else f"//{proxy}")
        connection = http.client.HTTPSConnection(
            via.hostname or "", via.port or 80, context=self._context, timeout=_TIMEOUT_S
        )
        headers = {}
        if via.username is not None:
            who = f"{unquote(via.username)}:{unquote(via.password or '')}"
            headers["Proxy-Authorization"] = f"Basic {b64encode(who.encode()).decode()}"
        connection.set_tunnel(host, int(port), headers)
        return connection

    def _ask(
        self,
        connection: http.client.HTTPSConnection,
        method: str,
        apart: Apart,
        offset: int,
        body: Iterator[bytes] | None = None,
    ) -> http.client.HTTPResponse:
        """Send a request and return the answer to it, where that is a good one."""
        request = Request(method, self._kit.site, apart, offset)
        headers = request.sign(self._kit.node_key, time.time())
        if body is not None:
            headers["Content-Length"] = str(apart.size - offset)
        # The coordinator may have said why before it closed the connection.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.request(method, request.path, body, headers)
        response = connection.getresponse()
        if response.status in _OVER:
            raise RunOverError
        if response.status in _RETRIED:
            raise http.client.HTTPException(f"HTTP {response.status}")
        if response.status != http.client.OK:
            raise self._not_taken(response.status, apart)
        return response

    def _not_taken(self, status: int, apart: Apart) -> ConnectionFailedError:
        site, address = self._kit.site, self._kit.address
        remedy = "run the same version of fedpath on both sides; the coordinator's log says more"
        if status == http.client.UNAUTHORIZED:
            remedy = "check this machine's clock, and that node.key is the one of the current kit"
        return ConnectionFailedError(
            f"the coordinator at {address} refused a file of {apart.size:,} bytes from or for site {site} "
            f"(HTTP {status})",
            remedy=remedy,
        )

    def _persist(self, attempt: Callable[[], None]) -> None:
        """Try again and again while bytes move now and then."""
        self._moved = self._told = time.monotonic()
        wait = _FIRST_WAIT_S
        while True:
            before = self._moved
            try:
                attempt()
                return self._note_away(None)
            except (OSError, http.client.HTTPException) as error:
                explained = explain_transport_error(self._kit.address, error)
                if time.monotonic() - self._moved > self._patience_s:
                    raise explained from None
                self._note_away(explained.message)
            wait = _FIRST_WAIT_S if self._moved != before else min(2 * wait, _LONGEST_WAIT_S)
            if self._stop.wait(wait):
                raise StoppedError

    def _note_move(self, way: str, done: int, size: int) -> None:
        self._moved = time.monotonic()
        self._note_away(None)
        if self._moved - self._told > _TELL_EVERY_S:
            self._told = self._moved
            self._progress(way, done, size)

    def _note_away(self, reason: str | None) -> None:
        if (reason is not None) != self._is_away:
            self._is_away = reason is not None
            self._away(reason)


def _blocks(response: http.client.HTTPResponse) -> Iterator[memoryview]:
    """Yield what arrives, in memory that the next block is written to."""
    block = memoryview(bytearray(BLOCK))
    while count := response.readinto(block):
        yield block[:count]
