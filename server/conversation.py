"""Orders out and answers in, over a running `FlowerServer`: the `Talk` of a federation."""

import time
from collections.abc import Collection, Mapping

from fedpath.core.errors import RefusedError
from fedpath.core.exchange.messages import Order, answer_in, encode
from fedpath.core.exchange.wire import Arrays
from fedpath.server.flower import FlowerServer, Lost, Ticket
from fedpath.server.talk import Asked, Reply, Silence

_MESSAGE_TYPES = {"train": "train", "evaluate": "evaluate"}
"""Flower's type of an order, by its kind; all others are queries."""


class Conversation:
    """See `fedpath.server.talk.Talk`."""

    def __init__(self, server: FlowerServer) -> None:
        self._server = server
        self._sent: dict[Asked, int] = {}

    def online(self) -> set[str]:
        """Return the sites that are connected."""
        return self._server.online()

    def arrivals(self, site: str) -> int:
        """Return how often a site has connected since this coordinator began."""
        return self._server.arrivals(site)

    def post(self, orders: Mapping[str, Order], arrays: Arrays, ttl_s: float) -> list[Asked]:
        """Send each site its order."""
        written: dict[int, bytes] = {}
        posted = []
        for site, order in orders.items():
            content = written.setdefault(id(order), b"") or encode(order, arrays)
            written[id(order)] = content
            kind, group = _MESSAGE_TYPES.get(order.kind, "query"), str(getattr(order, "round", 0))
            asked = Asked(site, self._server.send(site, kind, group, content, ttl_s=ttl_s).message_id)
            self._sent[asked] = len(content)
            posted.append(asked)
        return posted

    def next_reply(self, asked: Collection[Asked], timeout_s: float) -> Reply | None:
        """Return the answer of whoever is first, or None when the time is up."""
        deadline = time.monotonic() + timeout_s
        while True:
            seen = self._server.expect_news()
            for one in sorted(asked, key=lambda one: one.site):
                received = self._server.receive(Ticket(one.site, one.id))
                if received is not None:
                    return _reply(one, received, self._sent.pop(one, 0))
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self._server.wait_for_news(seen, left)

    def drop(self, asked: Asked) -> None:
        """Forget an order."""
        self._sent.pop(asked, None)
        self._server.drop(Ticket(asked.site, asked.id))


def _reply(asked: Asked, received: bytes | Lost, sent: int) -> Reply:
    if isinstance(received, Lost):
        return Reply(asked, Silence(received.reason), sent, 0)
    try:
        answer = answer_in(received)
    except RefusedError as error:
        return Reply(asked, Silence(error.message), sent, len(received))
    return Reply(asked, answer, sent, len(received), content=received)
