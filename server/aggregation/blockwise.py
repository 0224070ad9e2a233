"""Estimators that look at one coordinate at a time: they reduce a block of all updates to a block of the result.

The blocks are shared by a few threads; each block is the business of one, so the result has the same bits however many
there are. Every update's file is read once.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle

import numpy as np
import torch

from fedpath.core.exchange.stored import BLOCK, F32
from fedpath.core.exchange.wire import Arrays
from fedpath.server.aggregation.updates import (
    Block,
    Combined,
    Counted,
    blocks_of,
    by_array,
    patients_of,
    values_of,
    weights_of,
)

Reduce = Callable[[Iterable[F32], Sequence[float], F32], None]
"""Takes the same block of all updates, in the order of the sites' names, their weights, and where the result goes."""


class Blockwise:
    """Remembers the updates and reduces them at the end.

    Args:
        reference: the round's model.
        reduce: the estimator.
        together: whether it looks at a block of all updates at the same time; otherwise each is gone after its turn.
        threads: that share the work; as many as this process may run on, at most 8, by default.
    """

    def __init__(self, reference: Arrays, reduce: Reduce, *, together: bool = True, threads: int | None = None) -> None:
        self._reference, self._reduce, self._together = reference, reduce, together
        self._threads = threads or min(8, len(os.sched_getaffinity(0)))
        self._updates: list[Counted] = []

    def add(self, update: Counted) -> None:
        """Take one update."""
        self._updates.append(update)

    def result(self) -> Combined:
        """Return what the updates became."""
        holders = by_array(self._updates, self._reference)
        arrays = dict(self._reference)
        for name in holders:
            arrays[name] = np.empty_like(self._reference[name])
        shares = _shares(list(blocks_of(holders, self._reference)), self._threads)

        def work(blocks: Sequence[Block]) -> None:
            torch.set_num_threads(1)  # of this thread: the others have the other cores
            self._work(blocks, holders, arrays)

        with ThreadPoolExecutor(self._threads, thread_name_prefix="combine") as pool:
            list(pool.map(work, shares))
        return Combined(arrays, patients_of(self._updates))

    def _work(self, blocks: Sequence[Block], holders: dict[str, list[Counted]], arrays: Arrays) -> None:
        buffers = np.empty((len(self._updates) if self._together else 1, BLOCK), np.float32)
        for block in blocks:
            updates = holders[block.name]
            values = (
                values_of(update, block, self._reference, buffer)
                for update, buffer in zip(updates, cycle(buffers), strict=False)
            )
            out = arrays[block.name].reshape(-1)[block.start : block.stop]
            self._reduce(values, weights_of(updates, block.name), out)


def _shares(blocks: list[Block], parts: int) -> list[list[Block]]:
    """Deal the blocks out in contiguous pieces of about as many each."""
    each = -(-len(blocks) // parts) or 1
    return [blocks[start : start + each] for start in range(0, len(blocks), each)]
