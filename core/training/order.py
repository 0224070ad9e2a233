"""Which bags each optimizer step of a call learns from: passes over the shuffled bags, cut into steps.

A site that is told a number of passes makes them; one that is told a number of steps goes through pass after pass until
it has made them, and stops within one. Up to there it is the same course: as many steps as some passes have are these
passes, to the bit.
"""

from collections.abc import Iterator
from itertools import count

import torch

from fedpath.core.training.settings import TrainSettings

Step = list[int]
"""Indices of the bags whose gradients' mean a step uses; the last step of a pass may have fewer than the others."""


def course(bags: int, settings: TrainSettings, *, seed: int) -> list[list[Step]]:
    """Return the steps of each pass.

    Args:
        bags: how many there are, at least one.
        settings: `epochs`, or `steps` where that is set, and `accumulate_bags`.
        seed: of the order.
    """
    generator = torch.Generator().manual_seed(seed)
    left, passes = settings.steps, list[list[Step]]()
    for done in count():
        if left == 0 or (left is None and done == settings.epochs):
            return passes
        order = torch.randperm(bags, generator=generator).tolist()
        passes.append(list(pieces(order, settings.accumulate_bags))[:left])
        left = None if left is None else left - len(passes[-1])
    raise AssertionError  # `count` has no end


def pieces(order: list[int], size: int) -> Iterator[list[int]]:
    """Yield ``order`` in pieces of ``size``; the last one may be smaller."""
    for start in range(0, len(order), size):
        yield order[start : start + size]


def bags_in(passes: list[list[Step]]) -> int:
    """Return how many bags are gone through, each as often as it is."""
    return sum(len(step) for steps in passes for step in steps)
