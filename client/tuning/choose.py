"""Which patches of a slide the encoder is trained on: those that the selector ranks highest."""

import dataclasses

from torch import Tensor

from fedpath.core.cohort.examples import Example
from fedpath.core.models.protocol import BagModel
from fedpath.core.models.selection import select


def choose(selector: BagModel, example: Example, patches: int) -> Example:
    """Return a slide with its ``patches`` best patches only, in the order of its feature file; all if it has no more.

    Args:
        selector: on the CPU.
        example: the slide with all its patches.
        patches: K.

    Raises:
        DataError: the selector's numbers for the slide are not finite.
    """
    # In the file's order, so that they are read from the slide row by row whatever their rank.
    return with_patches(example, select(selector, example.bag, patches).sort().values)


def with_patches(example: Example, kept_K: Tensor) -> Example:
    """Return the example with the patches ``kept_K`` (indices) only."""
    bag = example.bag
    kept = dataclasses.replace(bag, features_ND=bag.features_ND[kept_K], coords_N2=bag.coords_N2[kept_K])
    return dataclasses.replace(example, bag=kept)
