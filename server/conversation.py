"""Ask sites and hear their answers, in the order of their names.

A fixed order makes sums of floats, and so the weights of a run, the same whenever it is repeated. Later sites' answers
wait in the message store meanwhile: one answer at a time is in memory.
"""

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fedpath.core.errors import RefusedError, StoppedError
from fedpath.core.exchange.messages import Answer, Order, Refusal, decode_answer, encode
from fedpath.core.exchange.wire import Arrays
from fedpath.server.flower import FlowerServer, Lost, Ticket

_POLL_S = 0.25  # for what makes no noise: a site that left, a deadline, Ctrl-C
_MESSAGE_TYPES = {"train": "train", "evaluate": "evaluate"}
"""Flower's type of an order, by its kind; all others are queries."""


@dataclass(frozen=True, slots=True)
class Silence:
    """No usable answer."""

    reason: str
    late: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back from one site."""

    site: str
    answer: Answer | Silence
    arrays: Arrays
    sent_bytes: int
    received_bytes: int

    @property
    def instead(self) -> str:
        """What came in place of the answer that was asked for, in words."""
        match self.answer:
            case Silence(reason=reason) | Refusal(reason=reason):
                return reason
            case answer:
                return f"it answered with {answer.kind}"


class Conversation:
    """Orders out, answers in, over a running `FlowerServer`."""

    def __init__(self, server: FlowerServer) -> None:
        self._server = server

    def online(self) -> set[str]:
        """Return the sites that are connected."""
        return self._server.online()

    def ask(
        self, sites: Iterable[str], order: Order, arrays: Arrays, timeout_s: float, stop: threading.Event
    ) -> Iterator[Reply]:
        """Send every site the same order, with ``arrays``, and yield one reply a site, in the order of their names.

        Args:
            sites: whom to ask.
            order: what to do.
            arrays: the model that goes along; empty for none.
            timeout_s: sites that have not answered by then are late: `Silence`.
            stop: set it to give up; raises StoppedError.
        """
        deadline = time.monotonic() + timeout_s
        content = encode(order, arrays)
        sent, kind, group = len(content), _MESSAGE_TYPES.get(order.kind, "query"), str(getattr(order, "round", 0))
        tickets = [self._server.send(site, kind, group, content, ttl_s=timeout_s + 60) for site in sorted(sites)]
        for ticket in tickets:
            site = ticket.site
            match self._wait(ticket, deadline, stop):
                case bytes() as received:
                    yield _reply(site, received, sent)
                case Lost(reason=reason):
                    yield Reply(site, Silence(reason), {}, sent, 0)
                case None:
                    self._server.drop(ticket)
                    yield Reply(site, Silence(f"no answer within {timeout_s:.0f} s", late=True), {}, sent, 0)

    def _wait(self, ticket: Ticket, deadline: float, stop: threading.Event) -> bytes | Lost | None:
        while True:
            # Asked at least once: an answer that came while another site was waited for still counts.
            received = self._server.receive(ticket)
            if received is not None or time.monotonic() > deadline:
                return received
            if stop.is_set():
                raise StoppedError
            self._server.wait_for_news(_POLL_S)


def _reply(site: str, content: bytes, sent: int) -> Reply:
    try:
        answer, arrays = decode_answer(content)
    except RefusedError as error:
        return Reply(site, Silence(error.message), {}, sent, len(content))
    return Reply(site, answer, arrays, sent, len(content))
