"""Hospitals in one process, some of which lie: what they send instead of what they trained.

An attacker trains like everybody and then replaces its weights w, w₀ being the model that came and Δ = w − w₀: it
cannot be told by its name, its patients, its loss or its validation figures.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from _in_process import InProcess

from fedpath.core.config import SiteConfig
from fedpath.core.exchange.messages import Answer, Order, Train, Update
from fedpath.core.exchange.wire import Arrays


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


class Hospitals(InProcess):
    """Hospitals of which some lie.

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
        super().__init__(sites, sites.__getitem__, federation)
        self._attack, self._attackers = attack, set(attackers)

    def answer(self, site: str, order: Order, arrays: Arrays) -> tuple[Answer, Arrays]:
        """Return what a hospital says to an order: an attacker's weights are not what it trained."""
        answer, trained = super().answer(site, order, arrays)
        if isinstance(answer, Update) and self._attack is not None and site in self._attackers:
            assert isinstance(order, Train)
            trained = self._attack.apply(arrays, trained, site, order.round)
        return answer, trained
