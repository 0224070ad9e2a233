"""Answers the sites' requests about files of arrays: see `fedpath.core.exchange.transfer`.

An ASGI application behind `fedpath.server.listener`. Bytes go between socket and disk a block at a time; files and
hashes are the business of threads, so a large model does not keep other sites waiting. While a block arrives the one
before it is written.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, BinaryIO, TypeVar

from cryptography.hazmat.primitives.asymmetric import ec

from fedpath.core.asgi import Receive, Scope, Send
from fedpath.core.exchange import transfer
from fedpath.core.exchange.transfer import OFFSET, Request, UnsignedError
from fedpath.core.exchange.wire import REASON_HEADER
from fedpath.server.listener import answer
from fedpath.server.tensors.incoming import (
    DamagedError,
    Incoming,
    NotWantedError,
    SupersededError,
    TooLargeError,
    Upload,
)
from fedpath.server.tensors.outgoing import Outgoing

T = TypeVar("T")
Moved = Callable[[Request, int], None]
"""Told now and then, in some thread, how many bytes of a file are over: a site that moves bytes is there."""
_BLOCK = 1 << 18
"""Bytes that are handed on at a time: every site that is sending costs two of these, and as much again in TLS."""
_TELL_EVERY_S = 5.0
_IDLE_S = 60.0
"""A connection on which nothing moves for so long is given up; the site asks again."""
_REASON = REASON_HEADER.encode()


class _GoneError(Exception):
    """The site has closed the connection, or nothing moves on it."""


class TensorApp:
    """See the module.

    Args:
        keys: of the sites that may connect.
        outgoing: files that orders speak of.
        incoming: files that answers speak of.
        moved: see `Moved`.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        keys: Mapping[str, ec.EllipticCurvePublicKey],
        outgoing: Outgoing,
        incoming: Incoming,
        moved: Moved,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys, self._outgoing, self._incoming = keys, outgoing, incoming
        self._moved, self._clock = moved, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        method = scope["method"]
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if method not in transfer.METHODS:
            return await answer(send, 405)
        try:
            request = Request.verified(method, scope["path"], headers, self._keys, self._clock())
        except UnsignedError:
            return await answer(send, 401, [(_REASON, b"unsigned")])
        if method == "GET":
            return await self._give(request, send)
        try:
            upload = await _in_thread(self._incoming.begin, request.site, request.apart)
        except NotWantedError:
            return await answer(send, 403)
        except TooLargeError:
            return await answer(send, 413)
        try:
            if method == "HEAD":
                return await answer(send, 200, _at(upload.offset))
            if request.offset != upload.offset or int(headers["content-length"]) != request.apart.size - upload.offset:
                return await answer(send, 409, _at(upload.offset))
            return await self._take(request, upload, receive, send)
        finally:
            upload.close()

    async def _give(self, request: Request, send: Send) -> None:
        """Send a file from the offset on."""
        file = await _in_thread(self._outgoing.open, request.apart, request.site)
        if file is None:
            return await answer(send, 404)
        with file:
            return await self._give_rest(request, file, send)

    async def _give_rest(self, request: Request, file: BinaryIO, send: Send) -> None:
        left = max(0, request.apart.size - request.offset)
        if not left:
            return await answer(send, 200)
        length = [(b"content-length", str(left).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        file.seek(request.offset)
        told, reading = time.monotonic(), _start(file.read, _BLOCK)
        while left:
            block = await reading
            left -= len(block)
            reading = _start(file.read, _BLOCK)
            try:
                body = {"type": "http.response.body", "body": block, "more_body": left > 0}
                await asyncio.wait_for(send(body), _IDLE_S)
            except TimeoutError:  # returning with less than was promised closes the connection
                break
            if (now := time.monotonic()) - told > _TELL_EVERY_S:
                told = now
                await _in_thread(self._moved, request, request.apart.size - left)
        await reading
        return None

    async def _take(self, request: Request, upload: Upload, receive: Receive, send: Send) -> None:
        """Take a file in from the offset on."""
        try:
            await self._take_in(request, upload, receive)
        except (SupersededError, _GoneError):
            return await answer(send, 408)
        except NotWantedError:
            return await answer(send, 403)
        except DamagedError:
            return await answer(send, 422)
        except OSError:  # no room; what is there stays, and the site tries again
            return await answer(send, 507)
        return await answer(send, 200, _at(upload.offset))

    async def _take_in(self, request: Request, upload: Upload, receive: Receive) -> None:
        writing: asyncio.Future[None] | None = None
        told, left, more = time.monotonic(), request.apart.size - request.offset, True
        try:
            while more:
                pieces: list[bytes] = []
                size = 0
                try:
                    while more and size < _BLOCK:
                        message = await asyncio.wait_for(receive(), _IDLE_S)
                        if message["type"] == "http.disconnect":
                            raise _GoneError
                        pieces.append(message.get("body", b""))
                        size, more = size + len(pieces[-1]), message.get("more_body", False)
                except (TimeoutError, _GoneError):
                    # What came counts all the same.
                    if writing is not None:
                        await writing
                    writing = _start(upload.append, pieces)
                    raise _GoneError from None
                if writing is not None:
                    await writing
                writing, left = _start(upload.append, pieces), left - size
                if (now := time.monotonic()) - told > _TELL_EVERY_S:
                    told = now
                    await _in_thread(self._moved, request, request.apart.size - left)
        finally:
            if writing is not None:
                await writing


def _at(offset: int) -> list[tuple[bytes, bytes]]:
    return [(OFFSET.encode(), str(offset).encode())]


def _start(work: Callable[..., T], *arguments: Any) -> "asyncio.Future[T]":
    """Begin something in a thread."""
    return asyncio.get_running_loop().run_in_executor(None, partial(work, *arguments))


async def _in_thread(work: Callable[..., T], *arguments: Any) -> T:
    return await _start(work, *arguments)
