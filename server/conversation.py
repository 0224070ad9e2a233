"""Orders out and answers in, over a running `FlowerServer`: the `Talk` of a federation.

Headers and small arrays travel as Flower messages; large arrays apart from them, as files (`fedpath.server.tensors`).
"""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from fedpath.core.errors import RefusedError
from fedpath.core.exchange.messages import Order, Refusal, answer_in
from fedpath.core.exchange.parcel import is_large
from fedpath.core.exchange.wire import Apart, Arrays, apart_from, pack
from fedpath.server.flower import FlowerServer, Lost, Ticket
from fedpath.server.talk import Asked, Reply, Silence

_MESSAGE_TYPES = {"train": "train", "evaluate": "evaluate"}
"""Flower's type of an order, by its kind; all others are queries."""
_SLACK = 1 << 20
"""Bytes that an answer's arrays may have beyond those of the order, for their names and what is said of them …"""
_SLACK_SHARE = 16
"""… and one more for so many: of a model of very many small arrays the names are a good part."""


@dataclass(frozen=True, slots=True)
class _Open:
    """An order that has not been answered."""

    sent: int
    """Bytes."""
    apart: Apart | None
    """The file that it speaks of."""
    expected: object
    """Names it to `fedpath.server.tensors.Incoming`."""


class Conversation:
    """See `fedpath.server.talk.Talk`."""

    def __init__(self, server: FlowerServer) -> None:
        self._server = server
        self._outgoing, self._incoming = server.tensors.outgoing, server.tensors.incoming
        self._open: dict[Asked, _Open] = {}

    def online(self) -> set[str]:
        """Return the sites that are connected."""
        return self._server.online()

    def arrivals(self, site: str) -> int:
        """Return how often a site has connected since this coordinator began."""
        return self._server.arrivals(site)

    def post(self, orders: Mapping[str, Order], arrays: Arrays, ttl_s: float) -> list[Asked]:
        """Send each site its order."""
        size, large = sum(array.nbytes for array in arrays.values()), is_large(arrays)
        contents: dict[int, bytes] = {}
        posted = []
        for site, order in orders.items():
            hashes = (getattr(order, "base", None), getattr(order, "control", None))
            apart = self._outgoing.write(arrays, None if hashes == (None, None) else hashes) if large else None
            if (content := contents.get(id(order))) is None:
                content = contents[id(order)] = pack(order.model_dump_json(), {} if large else arrays, apart)
            # Before the order is there: a site may be quick.
            expected = object()
            if apart is not None:
                self._outgoing.lend(apart, site)
            if arrays:
                self._incoming.expect(site, expected, size + size // _SLACK_SHARE + _SLACK)
            kind, group = _MESSAGE_TYPES.get(order.kind, "query"), str(getattr(order, "round", 0))
            asked = Asked(site, self._server.send(site, kind, group, content, ttl_s=ttl_s).message_id)
            self._open[asked] = _Open(len(content) + (0 if apart is None else apart.size), apart, expected)
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
                    return self._reply(one, received)
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self._server.wait_for_news(seen, left)

    def drop(self, asked: Asked) -> None:
        """Forget an order."""
        self._close(asked)
        self._server.drop(Ticket(asked.site, asked.id))

    def _reply(self, asked: Asked, received: bytes | Lost) -> Reply:
        sent = self._close(asked)
        if isinstance(received, Lost):
            return Reply(asked, Silence(received.reason), sent, 0)
        try:
            answer, apart = answer_in(received), apart_from(received)
        except RefusedError as error:
            return Reply(asked, Silence(error.message), sent, len(received))
        if apart is None:
            return Reply(asked, answer, sent, len(received), content=received)
        file = self._incoming.claim(asked.site, apart)
        if file is None:
            return Reply(asked, Refusal(reason="it speaks of arrays that it has not sent"), sent, len(received))
        return Reply(asked, answer, sent, len(received) + apart.size, content=received, file=file, sha256=apart.sha256)

    def _close(self, asked: Asked) -> int:
        """Lend and expect nothing any more for an order; return how many bytes were sent with it."""
        open_ = self._open.pop(asked, None)
        if open_ is None:
            return 0
        self._incoming.expect_no_more(asked.site, open_.expected)
        if open_.apart is not None:
            self._outgoing.take_back(open_.apart, asked.site)
        return open_.sent
