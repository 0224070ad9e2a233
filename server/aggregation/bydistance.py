"""Estimators that look at whole updates: one pass for the distances between them, one for those that count.

An update is a vector, and where hospitals sent different parameter groups there are several: groups that the same
hospitals sent are one vector, and each vector is combined by itself. Where all sent all, that is the literature's
definition. Where some hospitals have no clinical data, the groups that those send are compared among all, and the
clinical ones among those that have them, and each comparison is of vectors in one space: f liars among the senders of a
vector are what the estimator was proved against. Whoever leaves a group out is no closer to anybody for it.

A vector that fewer hospitals sent than the estimator needs stays as it was, and that is said.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedpath.core.exchange.groups import group_of
from fedpath.core.exchange.wire import Arrays
from fedpath.server.aggregation.blocks import LocalPasses, Part, Passes, Reduce, sum_of
from fedpath.server.aggregation.distances import Weigh
from fedpath.server.aggregation.mean import mean
from fedpath.server.aggregation.updates import Combined, Counted, by_array, too_few_of, weights_of


@dataclass(frozen=True, slots=True)
class _Vector:
    """Arrays that the same hospitals sent."""

    names: list[str]
    updates: Sequence[Counted]
    weights: Sequence[float]
    """Of each update; ones where they play no part."""


class ByDistance:
    """Remembers the updates, weighs them by the distances between them, and combines those that count.

    Args:
        reference: the round's model.
        weigh: how much each update counts.
        reduce: what is made of those that count; their mean by default.
        together: whether ``reduce`` looks at a block of all of them at the same time.
        chooses: whether ``weigh`` chooses some updates, whatever their patients; otherwise all count, by patients.
        needed: updates without which it says nothing.
        passes: where the blocks are worked on; in this process by default.
    """

    def __init__(
        self,
        reference: Arrays,
        weigh: Weigh,
        reduce: Reduce = mean,
        *,
        together: bool = False,
        chooses: bool = True,
        needed: int = 1,
        passes: Passes | None = None,
    ) -> None:
        self._reference, self._weigh, self._reduce, self._together = reference, weigh, reduce, together
        self._chooses, self._needed = chooses, needed
        self._passes = passes or LocalPasses(reference)
        self._updates: list[Counted] = []

    def add(self, update: Counted) -> None:
        """Take one update."""
        self._updates.append(update)

    def result(self) -> Combined:
        """Return what the updates became."""
        holders = by_array(self._updates, self._reference)
        vectors = self._vectors({name: updates for name, updates in holders.items() if len(updates) >= self._needed})
        parts: list[Part] = []
        for vector, squared_NN in zip(vectors, self._squared_distances(vectors), strict=True):
            shares = self._weigh(squared_NN, vector.weights)
            counting = [(update, share) for update, share in zip(vector.updates, shares, strict=True) if share > 0]
            updates, shares = [update for update, _ in counting], [share for _, share in counting]
            parts += [Part(name, updates, shares, self._together) for name in vector.names]
        arrays = self._reference | self._passes.reduce(parts, self._reduce)
        patients, sites = dict[str, float](), dict[str, list[str]]()
        for part in sorted(parts, key=lambda part: part.name):
            patients[group_of(part.name)] = sum(weights_of(part.updates, part.name))
            sites[group_of(part.name)] = [update.site for update in part.updates]
        too_few = too_few_of(holders, self._needed)
        return Combined(arrays, patients, sites if self._chooses else None, too_few)

    def _vectors(self, holders: Mapping[str, Sequence[Counted]]) -> list[_Vector]:
        """Return the vectors that the arrays make up, in the order of their first arrays.

        For an estimator that weighs by patients, a vector is also what was trained on as many patients.
        """
        vectors: dict[tuple[tuple[str, float], ...], _Vector] = {}
        for name, updates in holders.items():
            weights = [1.0] * len(updates) if self._chooses else weights_of(updates, name)
            key = tuple((update.site, weight) for update, weight in zip(updates, weights, strict=True))
            vectors.setdefault(key, _Vector([], updates, weights)).names.append(name)
        return list(vectors.values())

    def _squared_distances(self, vectors: Sequence[_Vector]) -> list[NDArray[np.float64]]:
        """Return the squared distances between the updates of each vector: those in its arrays, added up."""
        parts = [Part(name, vector.updates, vector.weights, True) for vector in vectors for name in vector.names]
        of_arrays = iter(self._passes.squared_distances(parts))
        return [sum_of([next(of_arrays) for _ in vector.names], len(vector.updates)) for vector in vectors]
