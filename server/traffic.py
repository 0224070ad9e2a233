"""What passes the coordinator's port, counted: bytes of each site, when it was last there, its clock, who was refused.

Counted in the listener's thread alone, read by any. A site is who signed the request: nothing is put to its name before
the app behind has accepted the signature, but for bytes of a body that was on its way meanwhile.
"""

import time
from collections import Counter
from collections.abc import Collection, MutableMapping
from datetime import datetime
from typing import Any

from fedpath.core.asgi import App, Receive, Scope, Send
from fedpath.core.exchange.transfer import SITE, TIME

_UNAUTHORIZED = 401


class Traffic:
    """Of one coordinator.

    Args:
        sites: that may connect.
    """

    def __init__(self, sites: Collection[str]) -> None:
        self._sites = frozenset(sites)
        self.to_site: Counter[str] = Counter(dict.fromkeys(self._sites, 0))
        self.from_site: Counter[str] = Counter(dict.fromkeys(self._sites, 0))
        """Bytes of bodies, by site."""
        self.seen: dict[str, float] = {}
        """Seconds since the epoch, by site."""
        self.skew_s: dict[str, float] = {}
        """A site's clock minus ours."""
        self.denied: Counter[str] = Counter(unregistered=0, signature=0)
        """Requests refused for who sent them."""

    def note_unregistered(self) -> None:
        """A request came with a key that no site of the federation has."""
        self.denied["unregistered"] += 1

    def counted(self, site: str, signed_at: float | None, receive: Receive, send: Send) -> tuple[Receive, Send]:
        """Return a request's channels, counted.

        Args:
            site: whose request it is, if its signature is.
            signed_at: when it says that it was signed, in seconds since the epoch.
            receive, send: ASGI's.
        """
        skew_s = None if signed_at is None else signed_at - time.time()

        async def receiving() -> MutableMapping[str, Any]:
            message = await receive()
            self.from_site[site] += len(message.get("body", b""))
            return message

        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                if message["status"] == _UNAUTHORIZED:
                    self.denied["signature"] += 1
                elif message["status"] < 300:
                    self.seen[site] = time.time()
                    if skew_s is not None:
                        self.skew_s[site] = skew_s
            else:
                self.to_site[site] += len(message.get("body", b""))
            await send(message)

        return receiving, sending

    def of_files(self, app: App) -> App:
        """Return `fedpath.server.tensors`' application, counted."""

        async def watched(scope: Scope, receive: Receive, send: Send) -> None:
            headers = dict(scope["headers"])
            site = headers.get(SITE.encode(), b"").decode("latin-1")
            if site not in self._sites:
                self.note_unregistered()
                return await app(scope, receive, send)  # which refuses it
            try:
                signed_at = float(headers.get(TIME.encode(), b""))
            except ValueError:
                signed_at = None
            return await app(scope, *self.counted(site, signed_at, receive, send))

        return watched


def moment_in(header: bytes | None) -> float | None:
    """Return the time in Flower's header, in seconds since the epoch; None where it holds none."""
    try:
        return datetime.fromisoformat((header or b"").decode("ascii")).timestamp()
    except ValueError:
        return None
