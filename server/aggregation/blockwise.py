"""Estimators that look at one coordinate at a time: one pass, in which each block of all updates becomes a new one.

A parameter group is combined over the sites that sent it; where they are fewer than the estimator needs, it stays as it
was, and that is said.
"""

from fedpath.core.exchange.groups import group_of
from fedpath.core.exchange.wire import Arrays
from fedpath.server.aggregation.blocks import LocalPasses, Part, Passes, Reduce
from fedpath.server.aggregation.updates import Combined, Counted, by_array, patients_of, too_few_of, weights_of


class Blockwise:
    """Remembers the updates and reduces them at the end.

    Args:
        reference: the round's model.
        reduce: the estimator.
        together: whether it looks at a block of all updates at the same time; otherwise each is gone after its turn.
        needed: updates without which it says nothing.
        passes: where the blocks are worked on; in this process by default.
    """

    def __init__(
        self,
        reference: Arrays,
        reduce: Reduce,
        *,
        together: bool = True,
        needed: int = 1,
        passes: Passes | None = None,
    ) -> None:
        self._reference, self._reduce, self._together, self._needed = reference, reduce, together, needed
        self._passes = passes or LocalPasses(reference)
        self._updates: list[Counted] = []

    def add(self, update: Counted) -> None:
        """Take one update."""
        self._updates.append(update)

    def result(self) -> Combined:
        """Return what the updates became."""
        holders = by_array(self._updates, self._reference)
        parts = [
            Part(name, updates, weights_of(updates, name), self._together)
            for name, updates in holders.items()
            if len(updates) >= self._needed
        ]
        arrays = self._reference | self._passes.reduce(parts, self._reduce)
        patients = patients_of(self._updates, {group_of(part.name) for part in parts})
        return Combined(arrays, patients, too_few=too_few_of(holders, self._needed))
