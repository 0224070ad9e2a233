"""The learning rate over a run: half a cosine, from its start to nothing (Loshchilov and Hutter 2017, no restarts)."""

import math


def learning_rate_at(position: float, start: float) -> float:
    """Return the half-cosine learning rate at ``position`` (0 to 1) of the whole run: ``start`` at 0, 0 at 1."""
    return start * 0.5 * (1 + math.cos(math.pi * position))
