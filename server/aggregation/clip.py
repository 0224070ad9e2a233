"""Norm clipping: a change that is too long is shortened before it counts, whatever combines the updates then.

Sun et al., 2019 ("Can You Really Backdoor Federated Learning?"): w = w₀ + (u − w₀) · min(1, C / ‖u − w₀‖), with the
norm over all arrays of the update.
"""

import math
from dataclasses import replace

from fedpath.core.exchange.wire import Arrays
from fedpath.server.aggregation.measure import measure
from fedpath.server.aggregation.updates import Combined, Combiner, Counted


class Clipped:
    """Shortens updates and hands them on.

    Args:
        inner: what combines them.
        reference: the round's model.
        most: C, the longest change that counts as it is.
    """

    def __init__(self, inner: Combiner, reference: Arrays, most: float) -> None:
        self._inner, self._reference, self._most = inner, reference, most

    def add(self, update: Counted) -> None:
        """Take one update."""
        norm = update.norm
        if norm is None:
            base = self._reference if update.base is None else update.base
            norm = math.hypot(*measure(update.arrays, base).values())
        shrink = 1.0 if norm <= self._most else self._most / norm
        self._inner.add(replace(update, shrink=update.shrink * shrink))

    def result(self) -> Combined:
        """Return what the updates became."""
        return self._inner.result()
