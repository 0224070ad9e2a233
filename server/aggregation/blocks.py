"""The blocks of the parameter space, worked on by a few threads: what every estimator is made of.

An estimator makes one or two passes over the updates' files. In a pass each block is the business of one thread, and
what becomes of it depends on nothing else: the result has the same bits however many threads there are.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from fedpath.core.exchange.stored import BLOCK, F32
from fedpath.core.exchange.wire import Arrays
from fedpath.server.aggregation.updates import Block, Counted, blocks_of, in_file_of, values_of

Reduce = Callable[[Any, Sequence[float], F32], None]
"""Makes one block of the result: takes the same block of all updates in the order of the sites' names, the updates'
weights, and where the result goes. A function of a module or an object that can be pickled.

The blocks come together, as one array [updates, elements] that it may write to, or, where `Part.together` is not set,
one after the other: an iterable of arrays, of which each is gone after its turn. It may be `InTurn`."""

_TOGETHER = 1 << 18
"""Elements of a block of all updates together: they stay in a core's cache from the reading to the last step."""
_SHORTEST = 1 << 12
"""Elements of a block of one update, at least: a read has a price."""
_RUN = 32
"""Blocks that a thread is handed at most."""

Result = TypeVar("Result")
Sender = TypeVar("Sender")


class InTurn:
    """A block of all updates that comes one after the other.

    Args:
        values: the blocks; each is read when its turn comes.
        in_files: of each, the descriptor and the offset of a file that holds just these numbers; None where one has no
            such file.
    """

    def __init__(self, values: Iterable[F32], in_files: Sequence[tuple[int, int] | None]) -> None:
        self._values = values
        self.in_files = None if None in in_files else [place for place in in_files if place is not None]

    def __iter__(self) -> Iterator[F32]:
        return iter(self._values)


@dataclass(frozen=True, slots=True)
class Part:
    """An array of the model, and the updates that are combined in it."""

    name: str
    updates: Sequence[Counted]
    """In the order of the sites' names; at least one."""
    weights: Sequence[float]
    """Of each update."""
    together: bool
    """Whether the estimator looks at a block of all updates at the same time."""

    def blocks(self, reference: Arrays) -> list[Block]:
        """Cut the array into blocks, always at the same places."""
        size = max(_SHORTEST, min(BLOCK, _TOGETHER // len(self.updates))) if self.together else BLOCK
        return list(blocks_of([self.name], reference, size))


class Passes(Protocol):
    """Goes over the updates' files."""

    def reduce(self, parts: Sequence[Part], reduce: Reduce) -> Arrays:
        """Return the arrays that parts become, by name."""
        ...

    def squared_distances(self, parts: Sequence[Part]) -> list[NDArray[np.float64]]:
        """Return the squared Euclidean distances [updates, updates] between the updates of each part."""
        ...


Engine = Callable[[Arrays], Passes]
"""Returns what goes over the updates of a round, whose model it is given; one serves all rounds of a run."""


class LocalPasses:
    """Goes over them with threads of this process.

    Args:
        reference: the round's model.
        threads: that share the work; as many as this process may run on, at most 8, by default.
    """

    def __init__(self, reference: Arrays, threads: int | None = None) -> None:
        self._reference = reference
        self._threads = threads or min(8, len(os.sched_getaffinity(0)))

    def reduce(self, parts: Sequence[Part], reduce: Reduce) -> Arrays:
        """See `Passes`."""
        arrays = {part.name: np.empty_like(self._reference[part.name]) for part in parts}

        def work(part: Part, block: Block, values: Iterable[F32]) -> None:
            reduce(values, part.weights, arrays[block.name].reshape(-1)[block.start : block.stop])

        for _ in self._each(parts, work):
            pass
        return arrays

    def squared_distances(self, parts: Sequence[Part]) -> list[NDArray[np.float64]]:
        """See `Passes`."""
        of_blocks = self._each(parts, lambda part, block, values: distances_of_block(values))
        # In the order of the blocks, whichever thread was first.
        return [sum_of(islice(of_blocks, len(part.blocks(self._reference))), len(part.updates)) for part in parts]

    def _each(self, parts: Sequence[Part], work: Callable[[Part, Block, Any], Result]) -> Iterator[Result]:
        """Yield what becomes of each block, in order; only a few wait to be taken."""
        blocks = [(part, block) for part in parts for block in part.blocks(self._reference)]
        each = max(1, min(_RUN, len(blocks) // (4 * self._threads)))
        waiting: deque[Future[list[Result]]] = deque()
        # One thread of torch's to each of ours: the others have the other cores.
        with ThreadPoolExecutor(self._threads, "combine", torch.set_num_threads, (1,)) as pool:
            for start in range(0, len(blocks), each):
                if len(waiting) == 2 * self._threads:
                    yield from waiting.popleft().result()
                waiting.append(pool.submit(self._run, work, blocks[start : start + each]))
            while waiting:
                yield from waiting.popleft().result()

    def _run(self, work: Callable[[Part, Block, Any], Result], blocks: Sequence[tuple[Part, Block]]) -> list[Result]:
        sizes = ((len(part.updates) if part.together else 1) * (block.stop - block.start) for part, block in blocks)
        buffer = np.empty(max(sizes), np.float32)

        def read(update: Counted, block: Block, row: F32) -> F32:
            return values_of(update, block, self._reference, row)

        def values(part: Part, block: Block) -> Iterable[F32]:
            of_block = block_of(part.updates, part.together, block, read, buffer)
            if part.together:
                return of_block
            return InTurn(of_block, [in_file_of(update, block) for update in part.updates])

        return [work(part, block, values(part, block)) for part, block in blocks]


def block_of(
    updates: Sequence[Sender], together: bool, block: Block, read: Callable[[Sender, Block, F32], F32], buffer: F32
) -> Iterable[F32]:
    """Return a block of all updates: see `Reduce`.

    Args:
        updates: whatever ``read`` reads from.
        together: whether they are needed at the same time.
        block: of the model.
        read: returns the block of an update, in the buffer it is given or elsewhere.
        buffer: holds a block of all updates, or of one where they need not be together.
    """
    size = block.stop - block.start
    rows = buffer[: size * len(updates) if together else size].reshape(-1, size)
    if not together:
        return (read(update, block, row) for update, row in zip(updates, cycle(rows), strict=False))
    for update, row in zip(updates, rows, strict=True):
        values = read(update, block, row)
        if not np.may_share_memory(values, row):  # a view of a file
            row[:] = values
    return rows


def distances_of_block(values_NM: F32) -> NDArray[np.float64]:
    """Return the squared Euclidean distances [N, N] between the rows of a block."""
    from fedpath.server.aggregation.kernels import add_squared_distances

    distances_NN = np.zeros((len(values_NM), len(values_NM)))
    add_squared_distances(values_NM, distances_NN)
    return distances_NN


def sum_of(squared: Iterable[NDArray[np.float64]], updates: int) -> NDArray[np.float64]:
    """Add squared distances between so many updates, one after the other."""
    total_NN = np.zeros((updates, updates))
    for squared_NN in squared:
        total_NN += squared_NN
    return total_NN
