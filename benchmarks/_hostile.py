"""Hospitals in one process, some of which lie: what they send instead of what they trained.

An attacker trains like everybody and then replaces its weights w, w₀ being the model that came and Δ = w − w₀: it
cannot be told by its name, its patients, its loss or its validation figures.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedpath.client.agent.worker import Worker
from fedpath.core.config import SiteConfig
from fedpath.core.errors import FedpathError
from fedpath.core.events import EventLog
from fedpath.core.exchange.messages import Answer, Finish, Order, Refusal, Train, answer_in, decode_order, encode
from fedpath.core.exchange.wire import Arrays
from fedpath.server.talk import Asked, Reply


@dataclass(frozen=True, slots=True)
class Attack:
    """What attackers send: w₀ − s·Δ, w₀ + s·Δ, or w₀ + s·‖Δ‖·z/‖z‖ with normal z, each its own."""

    kind: Literal["flipped", "scaled", "random"]
    times: float
    """s."""

    def __str__(self) -> str:
        return f"{self.kind} ×{self.times:g}"

    def apply(self, base: Arrays, trained: Arrays, site: str, round_: int) -> Arrays:
        """Return what is sent in place of ``trained``."""
        changes = {name: array - base[name] for name, array in trained.items()}
        if self.kind == "random":
            seed = int.from_bytes(hashlib.sha256(f"{site}/{round_}".encode()).digest()[:8])
            random, length = np.random.default_rng(seed), _norm(changes)
            noise = {name: random.standard_normal(change.shape, np.float32) for name, change in changes.items()}
            changes = {name: array * (length / _norm(noise)) for name, array in noise.items()}
        factor = -self.times if self.kind == "flipped" else self.times
        return {name: np.asarray(base[name] + factor * change, np.float32) for name, change in changes.items()}


def _norm(arrays: Arrays) -> float:
    return float(np.sqrt(sum(np.vdot(array, array) for array in arrays.values())))


class Hospitals:
    """Hospitals in this process, as a coordinator knows them: `fedpath.server.talk.Talk`. Every order and every answer
    passes through its bytes.

    Args:
        sites: site.toml by name.
        federation: its name.
        attack: of those that lie.
        attackers: who they are.
    """

    def __init__(
        self,
        sites: Mapping[str, SiteConfig],
        federation: str,
        attack: Attack | None = None,
        attackers: Collection[str] = (),
    ) -> None:
        self._workers = {
            name: Worker(config, federation=federation, events=EventLog()) for name, config in sites.items()
        }
        self._attack, self._attackers = attack, set(attackers)
        self._here = set(sites)
        self._open: dict[Asked, bytes] = {}
        self._posted = 0

    def online(self) -> set[str]:
        """Return who has not heard the goodbye."""
        return set(self._here)

    def post(self, orders: Mapping[str, Order], arrays: Arrays, ttl_s: float) -> list[Asked]:
        """Queue orders; hospitals work when they are listened to."""
        asked = []
        for site, order in orders.items():
            self._posted += 1
            asked.append(Asked(site, f"{self._posted:06d}"))
            self._open[asked[-1]] = encode(order, arrays)
        return asked

    def next_reply(self, asked: Collection[Asked], timeout_s: float) -> Reply | None:
        """Return the answer of the first of them."""
        one = next(iter(asked))
        content = self._open.pop(one)
        order, arrays = decode_order(content)
        answer, trained = self._answer(one.site, order, arrays)
        received = encode(answer, trained)
        return Reply(one, answer_in(received), len(content), len(received), content=received)

    def drop(self, asked: Asked) -> None:
        """Forget an order."""
        self._open.pop(asked, None)

    def _answer(self, site: str, order: Order, arrays: Arrays) -> tuple[Answer, Arrays]:
        if isinstance(order, Finish):
            self._here.discard(site)
        try:
            answer, trained = self._workers[site].carry_out(order, arrays)
        except FedpathError as error:
            return Refusal(reason=error.message), {}
        if isinstance(order, Train) and self._attack is not None and site in self._attackers:
            trained = self._attack.apply(arrays, trained, site, order.round)
        return answer, trained
