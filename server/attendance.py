"""Which sites are there for which run, where several runs use the same sites, one after the other or side by side.

A site that was sent away from a run, or has heard its goodbye, is not there for that run any more until it connects
anew, even if it stays for other runs. One that does not stay is leaving: it is there for no run until it connects anew.
A site takes part in as many runs at a time as its policy says (`max_parallel_runs`); for all others it is not there.
"""

import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from fedpath.core.exchange.messages import Describe, Description, Encode, Finish, Order, Receipt, Refusal, Refuse, Train
from fedpath.core.exchange.wire import Arrays
from fedpath.core.monitoring.pulse import Pulse
from fedpath.server.talk import Asked, Reply, Talk

_QUIET_S = 600.0
"""How long a run may neither look who is there nor listen: it reads and hashes models, checks a large update."""


class Connected(Talk, Protocol):
    """A conversation that knows when a site connects."""

    def arrivals(self, site: str) -> int:
        """Return how often a site has connected since this coordinator began."""
        ...


@dataclass(slots=True)
class _Site:
    """What is known of one site."""

    stays: bool = False
    """It said so when it was last told that its part was over."""
    limit: int = 1
    runs: set[str] = field(default_factory=set)
    """That it takes part in."""
    parted: dict[str, int] = field(default_factory=dict)
    """Runs that it was sent away from or has heard the goodbye of, with its arrival of then."""
    leaving: int | None = None
    """Its arrival when it began to leave."""


class Attendance:
    """Shared by the runs of one coordinator.

    Args:
        talk: with all sites.
        limits: what sites allowed when they were last here, by site.
        pulse: gets a sign of life of a run whenever it looks who is there or listens.
    """

    def __init__(self, talk: Connected, limits: Mapping[str, int] | None = None, pulse: Pulse | None = None) -> None:
        self._talk, self._lock = talk, threading.Lock()
        self.pulse = pulse or Pulse()
        self._sites: dict[str, _Site] = {site: _Site(limit=limit) for site, limit in (limits or {}).items()}

    def line(self, run: str) -> "Line":
        """Return the conversation of one run."""
        return Line(self._talk, self, run)

    def stays(self, site: str) -> bool:
        """Return whether a site stays when its run is over."""
        with self._lock:
            return self._of(site).stays

    def free(self, run: str, sites: Iterable[str]) -> set[str]:
        """Return those of the sites whose policy leaves room for a run, whether or not they are here now."""
        with self._lock:
            return {site for site in sites if self._has_room(self._of(site), run)}

    def busy(self, run: str, sites: Iterable[str]) -> dict[str, list[str]]:
        """Return the runs that the others of the sites take part in."""
        with self._lock:
            return {site: sorted(self._of(site).runs) for site in sites if not self._has_room(self._of(site), run)}

    def over(self, run: str) -> None:
        """Forget a run: it is over for all sites."""
        with self._lock:
            for known in self._sites.values():
                known.runs.discard(run)
                known.parted.pop(run, None)
        self.pulse.over(run)

    def here(self, run: str, online: Collection[str]) -> set[str]:
        """Return those of the sites online that are there for a run."""
        with self._lock:
            return {site for site in online if self._is_here(site, run)}

    def asked(self, run: str, site: str, order: Order) -> list[str]:
        """Note what a site is sent; return the other runs that it takes part in."""
        with self._lock:
            known = self._of(site)
            if _parts(order):
                known.runs.discard(run)
            else:
                known.runs.add(run)
            return sorted(known.runs - {run})

    def answered(self, run: str, order: Order, reply: Reply) -> None:
        """Note what a site says about itself, and that it has heard that its part is over."""
        with self._lock:
            known = self._of(reply.site)
            match reply.answer:
                case Description(max_parallel_runs=limit):
                    known.limit = limit
                case Refusal() if isinstance(order, Describe):
                    self._part(known, reply.site, run, leaves=False)
                case Receipt(stays=stays) if _parts(order):
                    known.stays = stays
                    self._part(known, reply.site, run, leaves=not stays)

    def _of(self, site: str) -> _Site:
        return self._sites.setdefault(site, _Site())

    def _part(self, known: _Site, site: str, run: str, *, leaves: bool) -> None:
        arrival = self._talk.arrivals(site)
        known.runs.discard(run)
        known.parted[run] = arrival
        if leaves:
            known.leaving = arrival

    def _has_room(self, known: _Site, run: str) -> bool:
        return run in known.runs or len(known.runs) < known.limit

    def _is_here(self, site: str, run: str) -> bool:
        known, arrival = self._of(site), self._talk.arrivals(site)
        if known.leaving == arrival or known.parted.get(run) == arrival:
            return False
        return self._has_room(known, run)


def _parts(order: Order) -> bool:
    """Return whether a site's part in a run is over with an order."""
    return isinstance(order, Refuse) or (isinstance(order, Finish) and not order.more)


class Line:
    """The `fedpath.server.talk.Talk` of one run: the sites that are there for it, and what they are told of others.

    Args:
        talk: with all sites.
        attendance: of all runs.
        run: which one.
    """

    def __init__(self, talk: Connected, attendance: Attendance, run: str) -> None:
        self._talk, self._attendance, self._run = talk, attendance, run
        self._open: dict[Asked, Order] = {}

    def online(self) -> set[str]:
        """Return the sites that are there for this run."""
        self._attendance.pulse.beat(self._run, _QUIET_S)
        return self._attendance.here(self._run, self._talk.online())

    def post(self, orders: Mapping[str, Order], arrays: Arrays, ttl_s: float) -> list[Asked]:
        """Send each site its order, with the other runs that it takes part in."""
        told: dict[tuple[int, tuple[str, ...]], Order] = {}
        sent: dict[str, Order] = {}
        for site, order in orders.items():
            beside = self._attendance.asked(self._run, site, order)
            if beside and isinstance(order, Describe | Train | Encode):
                # One object for all sites that are told the same: it is written once.
                key = id(order), tuple(beside)
                order = told.setdefault(key, order.model_copy(update={"beside": beside}))
            sent[site] = order
        posted = self._talk.post(sent, arrays, ttl_s)
        self._open |= {asked: sent[asked.site] for asked in posted}
        return posted

    def next_reply(self, asked: Collection[Asked], timeout_s: float) -> Reply | None:
        """Return the answer of whoever is first, or None when the time is up."""
        self._attendance.pulse.beat(self._run, timeout_s + _QUIET_S)
        reply = self._talk.next_reply(asked, timeout_s)
        if reply is not None and (order := self._open.pop(reply.asked, None)) is not None:
            self._attendance.answered(self._run, order, reply)
        return reply

    def drop(self, asked: Asked) -> None:
        """Forget an order."""
        self._open.pop(asked, None)
        self._talk.drop(asked)
