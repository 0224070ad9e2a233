"""What the optimizers share: moments of the change, named arrays beside the model's, and steps a block at a time."""

from collections.abc import Callable

import numpy as np

from fedpath.core.errors import FederationError
from fedpath.core.exchange.stored import BLOCK, F32
from fedpath.core.exchange.wire import Arrays

_STATISTICS = ("running_mean", "running_var")

BlockStep = Callable[[F32, F32, list[F32]], None]
"""``(reference, change, moments)`` of a block, flat; writes the new values over the change, and the moments."""


def is_weight(name: str) -> bool:
    """Whether an array "group/parameter" is stepped; a running variance that is stepped could become negative."""
    return name.rpartition("/")[2].rpartition(".")[2] not in _STATISTICS


class Moments:
    """Arrays of the shapes of the model's weights, one set for each kind.

    Args:
        reference: the model.
        kinds: name of each moment, and the value that it starts with.
    """

    def __init__(self, reference: Arrays, kinds: dict[str, float]) -> None:
        self._kinds = tuple(kinds)
        self._arrays: Arrays = {}
        for kind, start in kinds.items():
            for name, array in reference.items():
                if is_weight(name):
                    self._arrays[f"{kind}:{name}"] = np.full(array.shape, start, np.float32)

    def state(self) -> Arrays:
        """Return the arrays, named "kind:group/parameter"."""
        return dict(self._arrays)

    def load(self, state: Arrays) -> None:
        """Take the values of an earlier `state`."""
        if difference := sorted(_shapes(state) ^ _shapes(self._arrays)):
            name, _ = difference[0]
            raise FederationError(
                f"the state of the coordinator's optimizer does not fit the run: {name}",
                remedy="continue with the [optimizer] and [model] that the run began with, or start a new run",
            )
        for name, array in self._arrays.items():
            np.copyto(array, state[name])

    def step(self, reference: Arrays, combined: Arrays, block_step: BlockStep) -> Arrays:
        """Return the next model, made over ``combined`` where that is memory of its own."""
        change_of_block = np.empty(BLOCK, np.float32)
        stepped: Arrays = {}
        for name, target in combined.items():
            start = reference[name]
            if not is_weight(name) or target is start or np.array_equal(target, start):
                stepped[name] = target
                continue
            moments = [self._arrays[f"{kind}:{name}"].reshape(-1) for kind in self._kinds]
            stepped[name] = own = _own(target, start)
            flat, flat_start = own.reshape(-1), np.ascontiguousarray(start).reshape(-1)
            for begin in range(0, flat.size, BLOCK):
                block = slice(begin, begin + BLOCK)
                change = np.subtract(flat[block], flat_start[block], out=change_of_block[: flat[block].size])
                block_step(flat_start[block], change, [moment[block] for moment in moments])
                flat[block] = change
        return stepped


def _shapes(arrays: Arrays) -> set[tuple[str, tuple[int, ...]]]:
    return {(name, array.shape) for name, array in arrays.items()}


def _own(target: F32, start: F32) -> F32:
    """Return an array that may be written: the target itself, or a copy where it is shared or mapped."""
    if target.flags.c_contiguous and target.flags.writeable and not np.may_share_memory(target, start):
        return target
    return np.array(target, np.float32, order="C")
