"""The few words of ASGI that listeners and pages need: types, one whole answer, one small body."""

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]

TEXT, HTML = b"text/plain; charset=utf-8", b"text/html; charset=utf-8"


async def respond(
    send: Send, status: int, body: bytes = b"", kind: bytes = TEXT, headers: Sequence[Header] = ()
) -> None:
    """Answer a request as a whole."""
    about = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*about, *headers]})
    await send({"type": "http.response.body", "body": body})


async def body_of(receive: Receive, limit: int) -> bytes | None:
    """Return the body of a request; None where it is larger than ``limit`` bytes or its sender has gone."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += bytes(message.get("body", b""))
        if len(body) > limit:
            return None
        if not message.get("more_body", False):
            return body
