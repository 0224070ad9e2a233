"""Pieces of a pass over the updates' files: what one process works on while others work on others.

A piece is a run of blocks, small enough to be done again when its process is lost. Whoever works on it opens the
updates' files if they lie before it under the same path; to others the blocks are sent. What a block becomes depends
on nothing else: the same bits as `LocalPasses` gives, on processors of one kind.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from fedpath.core.exchange.stored import F32, ArrayFile
from fedpath.core.exchange.wire import Arrays
from fedpath.server.aggregation.blocks import Part, Reduce, block_of, distances_of_block
from fedpath.server.aggregation.updates import Block, Counted, moved

_PIECE = 1 << 23
"""Numbers of all updates in a piece, at most, unless one block has more: 32 MB, of which a few are under way."""

Outcome = F32 | list[NDArray[np.float64]]
"""The blocks' results one after the other; or each block's squared distances."""


class UnseenError(Exception):
    """The updates' files do not lie before this process."""


@dataclass(frozen=True, slots=True)
class Source:
    """An update: `Counted` without what is held in memory."""

    path: Path
    stamp: tuple[int, int, int]
    """Inode, size and time of the file: another machine may have another file under the same path."""
    changes: bool
    late: bool
    shrink: float

    @classmethod
    def of(cls, update: Counted) -> Self:
        """Return the source of an update."""
        path = update.arrays.path.absolute()
        return cls(path, _stamp(path), update.arrays.changes, update.base is not None, update.shrink)

    def moves(self) -> bool:
        """As `Counted.moves`."""
        return self.changes or self.late or self.shrink != 1.0

    def open(self) -> ArrayFile:
        """Open its file.

        Raises:
            UnseenError: it is not there, or another one is.
        """
        try:
            if _stamp(self.path) == self.stamp:
                return ArrayFile(self.path)
        except OSError as error:
            raise UnseenError(str(error)) from None
        raise UnseenError(f"{self.path} is another file")


def _stamp(path: Path) -> tuple[int, int, int]:
    there = path.stat()
    return there.st_ino, there.st_size, there.st_mtime_ns


@dataclass(frozen=True, slots=True)
class SourcePart:
    """An array of the model, and which of a pass's sources are combined in it: `Part` without the updates."""

    updates: Sequence[int]
    weights: Sequence[float]
    together: bool


@dataclass(frozen=True, slots=True)
class Pass:
    """What holds for all pieces of a pass."""

    reduce: Reduce | None
    """None: squared distances are wanted."""
    sources: Sequence[Source]
    parts: Sequence[SourcePart]


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of blocks, and the round's model there, where an update is a change of it."""

    number: int
    blocks: Sequence[tuple[int, Block]]
    """Each with the index of its part."""
    here: dict[tuple[str, int], F32] = field(default_factory=dict)
    """By name and start of a block."""
    bases: dict[tuple[int, str, int], F32] = field(default_factory=dict)
    """Of late updates' models; the source first."""


def cut(parts: Sequence[Part], reference: Arrays) -> list[list[tuple[int, Block]]]:
    """Cut a pass into runs of blocks, always at the same places."""
    runs: list[list[tuple[int, Block]]] = []
    room = 0
    for index, part in enumerate(parts):
        for block in part.blocks(reference):
            numbers = (block.stop - block.start) * len(part.updates)
            if numbers > room or not runs:
                runs.append([])
                room = _PIECE
            runs[-1].append((index, block))
            room -= numbers
    return runs


class Reader:
    """Reads blocks of the sources' files as the weights they come to; a context manager, which closes them."""

    def __init__(self, of_pass: Pass, piece: Piece) -> None:
        self._sources, self._piece = of_pass.sources, piece
        self._files: dict[int, ArrayFile] = {}
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.clear()
        self._opened.close()

    def read(self, index: int, block: Block, buffer: F32) -> F32:
        """As `updates.values_of`.

        Raises:
            UnseenError: see `Source.open`.
        """
        if index not in self._files:
            self._files[index] = self._opened.enter_context(self._sources[index].open())
        source = self._sources[index]
        values = self._files[index].block(block.name, block.start, block.stop, buffer)
        if not source.moves():
            return values
        here, base = (
            self._piece.here[block.name, block.start],
            self._piece.bases.get((index, block.name, block.start)),
        )
        return moved(values, source.changes, here, base, source.shrink, buffer)


def read_all(of_pass: Pass, piece: Piece) -> list[F32]:
    """Return a piece's blocks of all updates, [updates, elements] each: for a process that does not see the files."""
    blocks = []
    with Reader(of_pass, piece) as reader:
        for index, block in piece.blocks:
            updates = of_pass.parts[index].updates
            rows = np.empty((len(updates), block.stop - block.start), np.float32)
            for row, update in zip(rows, updates, strict=True):
                values = reader.read(update, block, row)
                if not np.may_share_memory(values, row):
                    row[:] = values
            blocks.append(rows)
    return blocks


def work(of_pass: Pass, piece: Piece, sent: Sequence[F32] | None = None) -> Outcome:
    """Do a piece.

    Args:
        of_pass: what it is part of.
        piece: of it.
        sent: its blocks, see `read_all`; None where the files are there.

    Raises:
        UnseenError: the files are not there.
    """
    torch.set_num_threads(1)  # other cores have other pieces
    sizes = [block.stop - block.start for _, block in piece.blocks]
    most = max(
        size * (len(of_pass.parts[index].updates) if of_pass.parts[index].together else 1)
        for (index, _), size in zip(piece.blocks, sizes, strict=True)
    )
    buffer, out, distances = np.empty(most, np.float32), np.empty(sum(sizes), np.float32), []
    places = _places(sizes)
    with Reader(of_pass, piece) as reader:
        for number, ((index, block), place) in enumerate(zip(piece.blocks, places, strict=True)):
            part = of_pass.parts[index]
            if sent is None:
                values = block_of(part.updates, part.together, block, reader.read, buffer)
            else:
                # A block that was sent is not to be written to.
                values = sent[number].copy() if part.together else iter(sent[number])
            if of_pass.reduce is None:
                distances.append(distances_of_block(np.asarray(values)))
            else:
                of_pass.reduce(values, part.weights, out[place])
    return distances if of_pass.reduce is None else out


def _places(sizes: Sequence[int]) -> Iterator[slice]:
    start = 0
    for size in sizes:
        yield slice(start, start + size)
        start += size
