"""How far an update moved the model, and whether its numbers are numbers: one pass over its file.

Squares are summed in float32 within a block, by torch's vector units, and over the blocks in float64. Where that leaves
float32 (changes above 1e19 or below 1e-23), the block is done again in float64.
"""

import numpy as np
import torch

from fedpath.core.errors import RefusedError
from fedpath.core.exchange.groups import CONTROL, group_of
from fedpath.core.exchange.stored import BLOCK, F32, ArrayFile
from fedpath.core.exchange.wire import Arrays
from fedpath.server.aggregation.updates import blocks_of, tensor_of

_TINY = 1e-30


def measure(update: ArrayFile, reference: Arrays) -> dict[str, float]:
    """Return the Euclidean norm of an update's change, by group.

    Args:
        update: its arrays have the names and shapes of the reference's.
        reference: the model that it started from.

    Raises:
        RefusedError: an array holds NaN or infinite values; SCAFFOLD's are looked at as well.
    """
    squares: dict[str, float] = {}
    buffer, change = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    for name in sorted(update.names):
        own = name.removeprefix(CONTROL)
        total = 0.0
        for block in blocks_of([own], reference):
            values = update.block(name, block.start, block.stop, buffer)
            against = None
            if not (update.changes or name != own):
                against = reference[own].reshape(-1)[block.start : block.stop]
            total += _squares(name, values, against, change)
        if name == own:
            group = group_of(name)
            squares[group] = squares.get(group, 0.0) + total
    return {group: square**0.5 for group, square in squares.items()}


def _squares(name: str, values: F32, against: F32 | None, buffer: F32) -> float:
    """Return the sum of the squared change of one block."""
    change = values
    with np.errstate(over="ignore", invalid="ignore"):
        if against is not None:
            change = np.subtract(values, against, out=buffer[: len(values)])
        flat = tensor_of(change)
        square = float(torch.dot(flat, flat))
    if np.isfinite(square) and square > _TINY:
        return square
    if not np.isfinite(values).all():
        raise RefusedError(
            f"{name} holds NaN or infinite values", remedy="look at the log of that site", cause="not_finite"
        )
    exact = values.astype(np.float64)
    if against is not None:
        exact -= against
    return float(np.vdot(exact, exact))
