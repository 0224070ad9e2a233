"""What is combined: updates in files, a block of the parameter space at a time."""

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from fedpath.core.exchange.groups import CONTROL, group_of
from fedpath.core.exchange.stored import BLOCK, F32, ArrayFile
from fedpath.core.exchange.wire import Arrays


@dataclass(frozen=True, slots=True)
class Counted:
    """One update that has been checked and counts."""

    site: str
    arrays: ArrayFile
    """The arrays that the site sent, "group/parameter"; others in the file are not looked at."""
    patients: Mapping[str, float]
    """Weight of each group: the patients that trained it, less for an update that came late."""
    base: Arrays | None = None
    """The model that a late update started from; None for the round's own. What counts is the change against it."""
    norm: float | None = None
    """Euclidean norm of the change, where it has been measured."""
    shrink: float = 1.0
    """What the change is multiplied by before it counts."""

    def sent(self) -> set[str]:
        """Return the names of the arrays that are combined."""
        return {name for name in self.arrays.names if not name.startswith(CONTROL)}

    def moves(self) -> bool:
        """Return whether what counts is a change of the round's model, and not what the file holds."""
        return self.arrays.changes or self.base is not None or self.shrink != 1.0


@dataclass(frozen=True, slots=True)
class Combined:
    """What the updates of a round became."""

    arrays: Arrays
    """A whole model, as the reference."""
    patients: dict[str, float]
    """The weights that counted, by group; only groups that are not as they were."""
    chosen: dict[str, list[str]] | None = None
    """The sites whose updates were chosen, by group; of an estimator that chooses."""
    too_few: dict[str, int] = field(default_factory=dict)
    """The groups that are as they were, because the estimator needs more updates than those that held them: how many
    did."""


class Combiner(Protocol):
    """Takes the updates of one round and makes one model of them."""

    def add(self, update: Counted) -> None:
        """Take one update; its file must stay until `result` has returned."""
        ...

    def result(self) -> Combined:
        """Return what the updates became; called once."""
        ...


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of one array."""

    name: str
    start: int
    """First element of the flattened array."""
    stop: int


def blocks_of(names: Iterable[str], reference: Arrays, size: int = BLOCK) -> Iterator[Block]:
    """Cut arrays into pieces of at most ``size`` elements, always at the same places."""
    for name in names:
        for start in range(0, reference[name].size, size):
            yield Block(name, start, min(start + size, reference[name].size))


def by_array(updates: Iterable[Counted], reference: Arrays) -> dict[str, list[Counted]]:
    """Return the updates that hold each array, in the order of the sites' names; without arrays that nobody sent."""
    ordered = sorted(updates, key=lambda update: update.site)
    holders = {name: [update for update in ordered if name in update.arrays.names] for name in sorted(reference)}
    return {name: updates for name, updates in holders.items() if updates}


def weights_of(updates: Iterable[Counted], name: str) -> list[float]:
    """Return the weight of each update in an array's group."""
    return [float(update.patients[group_of(name)]) for update in updates]


def patients_of(updates: Iterable[Counted], groups: Collection[str] | None = None) -> dict[str, float]:
    """Return the sum of the weights, by group: of all groups, or of those that are named."""
    total: dict[str, float] = {}
    for update in sorted(updates, key=lambda update: update.site):
        for group in sorted(update.patients if groups is None else update.patients.keys() & groups):
            total[group] = total.get(group, 0.0) + float(update.patients[group])
    return total


def too_few_of(holders: Mapping[str, Sequence[Counted]], needed: int) -> dict[str, int]:
    """Return the groups that fewer than ``needed`` updates hold, with their number."""
    return {group_of(name): len(updates) for name, updates in holders.items() if len(updates) < needed}


with warnings.catch_warnings():
    # torch says once a process that it could write to memory that numpy would not; nothing here does.
    warnings.simplefilter("ignore")
    torch.from_numpy(np.frombuffer(bytes(4), np.float32))


def tensor_of(values: F32) -> torch.Tensor:
    """Return a tensor on the memory of a block, to be read from."""
    return torch.from_numpy(values)


def values_of(update: Counted, block: Block, reference: Arrays, buffer: F32) -> F32:
    """Return what an update says the weights of a block are, as float32.

    Args:
        update: the update.
        block: of an array that it holds.
        reference: the round's model.
        buffer: at least as long as the block.

    Returns:
        A read-only view of the file where that holds just these numbers, a part of ``buffer`` otherwise.
    """
    values = update.arrays.block(block.name, block.start, block.stop, buffer)
    if not update.moves():
        return values
    place = slice(block.start, block.stop)
    here = reference[block.name].reshape(-1)[place]
    base = None if update.base is None else update.base[block.name].reshape(-1)[place]
    return moved(values, update.arrays.changes, here, base, update.shrink, buffer)


def in_file_of(update: Counted, block: Block) -> tuple[int, int] | None:
    """Return which file holds just what `values_of` returns, and where: descriptor and offset; None if none does."""
    return None if update.moves() else update.arrays.in_file(block.name, block.start)


def moved(values: F32, changes: bool, here: F32, base: F32 | None, shrink: float, buffer: F32) -> F32:
    """Return the weights that an update comes to, where its file does not just hold them.

    Args:
        values: a block as the file has it.
        changes: whether these are changes.
        here: the block of the round's model.
        base: of the model that a late update started from; None for the round's own.
        shrink: what the change is multiplied by.
        buffer: where the result goes; ``values`` may lie there.
    """
    out = buffer[: len(values)]
    change = values if changes else np.subtract(values, here if base is None else base, out=out)
    if shrink != 1.0:
        change = np.multiply(change, np.float32(shrink), out=out)
    return np.add(here, change, out=out)
