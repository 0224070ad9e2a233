"""What a run needs of its sites, whether they are reached over the network, in this process or on a cluster.

`post` sends, `next_reply` hears whoever answers first, `drop` forgets. The rest is built on these three.
"""

import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fedpath.core.errors import StoppedError
from fedpath.core.exchange.messages import Answer, Order, Refusal
from fedpath.core.exchange.wire import Arrays


@dataclass(frozen=True, slots=True)
class Silence:
    """No usable answer."""

    reason: str
    late: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """An order that a site was sent and that is to be answered."""

    site: str
    id: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back from one site."""

    asked: Asked
    answer: Answer | Silence
    sent_bytes: int
    received_bytes: int
    content: bytes = b""
    """The whole answer as it came, header and small arrays with their metadata: a safetensors blob."""
    file: Path | None = None
    """Large arrays: a file of `fedpath.core.exchange.stored`. It is the receiver's to move or to remove."""
    sha256: str = ""
    """Of the file, where it was computed while the file came; empty where nobody did."""

    @property
    def site(self) -> str:
        """Who answered."""
        return self.asked.site

    @property
    def instead(self) -> str:
        """What came in place of the answer that was asked for, in words."""
        match self.answer:
            case Silence(reason=reason) | Refusal(reason=reason):
                return reason
            case answer:
                return f"it answered with {answer.kind}"


class Talk(Protocol):
    """The sites, as a run knows them."""

    def online(self) -> set[str]:
        """Return the sites that are connected."""
        ...

    def post(self, orders: Mapping[str, Order], arrays: Arrays, ttl_s: float) -> list[Asked]:
        """Send each site its order, all with the same arrays, which are written once.

        Args:
            orders: by site.
            arrays: the model that goes along; empty for none.
            ttl_s: seconds after which neither an order nor an answer to it is delivered.
        """
        ...

    def next_reply(self, asked: Collection[Asked], timeout_s: float) -> Reply | None:
        """Return the answer of whoever is first, or the `Silence` of one that is gone; None when the time is up.

        Of several that have answered, it is the first in the order of ``asked``. A reply is returned once: take its
        order out of ``asked`` afterwards.
        """
        ...

    def drop(self, asked: Asked) -> None:
        """Forget an order: whether or not it was fetched, an answer to it is no longer wanted."""
        ...


_POLL_S = 0.25  # for what makes no noise: a deadline, Ctrl-C


def replies(talk: Talk, asked: Iterable[Asked], deadline: float, stop: threading.Event) -> Iterator[Reply]:
    """Yield replies as they come, until all have answered or the time is up.

    Args:
        talk: the conversation.
        asked: what was posted; those that have not answered in the end are still open, and the caller's to drop.
        deadline: of `time.monotonic`.
        stop: set it to give up; raises StoppedError.
    """
    waiting = dict.fromkeys(asked)
    while waiting:
        left = deadline - time.monotonic()
        # Asked at least once: an answer that came while another one was looked at still counts.
        reply = talk.next_reply(waiting, min(max(left, 0.0), _POLL_S))
        if reply is not None:
            del waiting[reply.asked]
            yield reply
        elif left <= 0:
            return
        if stop.is_set():
            raise StoppedError


def ask(
    talk: Talk, sites: Iterable[str], order: Order, arrays: Arrays, timeout_s: float, stop: threading.Event
) -> Iterator[Reply]:
    """Send every site the same order and yield one reply a site, as they come; sites that are late last.

    Args:
        talk: the conversation.
        sites: whom to ask.
        order: what to do.
        arrays: the model that goes along; empty for none.
        timeout_s: sites that have not answered by then are late: `Silence`.
        stop: set it to give up; raises StoppedError.
    """
    return ask_each(talk, dict.fromkeys(sorted(sites), order), arrays, timeout_s, stop)


def ask_each(
    talk: Talk, orders: Mapping[str, Order], arrays: Arrays, timeout_s: float, stop: threading.Event
) -> Iterator[Reply]:
    """Send each site its own order, all with the same arrays; otherwise as `ask`."""
    asked = talk.post(orders, arrays, timeout_s + 60)
    waiting = {one.site: one for one in asked}
    for reply in replies(talk, asked, time.monotonic() + timeout_s, stop):
        del waiting[reply.site]
        yield reply
    for one in waiting.values():
        talk.drop(one)
        yield Reply(one, Silence(f"no answer within {timeout_s:.0f} s", late=True), 0, 0)
