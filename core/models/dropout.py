"""Dropout from a few random bits an element: ``torch.bernoulli_`` would cost a third of a pooling model's step.

An element takes a byte, which decides 256 cases, or fewer bits where they do: 2 for a rate of 0.25. So a rate is
rounded to a multiple of 1/256: 0.25 and 0.5 are exact, 0.1 becomes 26/256 = 0.1016. Whoever scales what is kept divides
by ``kept_share``, the share that is really kept: the expectation is exact.
"""

from math import ceil, prod

import torch
from torch import Tensor

from fedpath.core.models.memory import Scratch

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def kept_share(rate: float) -> float:
    """Return the share of elements that dropout at ``rate`` (0 ≤ rate < 1) keeps: a multiple of 1/256, at least one."""
    if not 0 <= rate < 1:
        raise ValueError(f"dropout rate {rate} is not in [0, 1)")
    return 1 - min(round(256 * rate), 255) / 256


def keep_mask(shape: tuple[int, ...], rate: float, device: torch.device | str = "cpu") -> Tensor:
    """Return a uint8 mask: 1 with probability ``kept_share(rate)``, else 0; from the device's global generator."""
    return _keep_bits(shape, rate, Scratch(torch.device(device))).neg_().view(torch.uint8)


def drop_(values: Tensor, rate: float, scratch: Scratch | None = None) -> Tensor:
    """Zero elements of ``values`` in place where ``keep_mask`` would be 0, do not scale the others, and return it.

    ``scratch`` lends the memory of intermediates to callers that go through many chunks.
    """
    scratch = scratch or Scratch(values.device)
    integer = _INTEGERS[values.element_size()]
    # Masked as integers: multiplying would first turn the mask into floats, element by element.
    bits = scratch("bits", values.shape, integer).copy_(_keep_bits(values.shape, rate, scratch))
    values.view(integer).bitwise_and_(bits)
    return values


def _keep_bits(shape: tuple[int, ...], rate: float, scratch: Scratch) -> Tensor:
    """Return an int8 mask: all bits set (-1) to keep, none (0) to drop."""
    n, kept = prod(shape), kept_share(rate)
    # An element is kept if its number of ``width`` bits is below the threshold.
    width = next(width for width in (1, 2, 4, 8) if (kept * 2**width).is_integer())
    threshold, numbers_a_byte = int(kept * 2**width), 8 // width
    n_words = ceil(n / numbers_a_byte / 8)
    drawn = scratch("drawn", (n_words,), torch.int64).random_(-(2**63), None).view(torch.uint8)
    numbers = scratch("numbers", (numbers_a_byte, len(drawn)), torch.uint8)
    for place, row in enumerate(numbers):
        torch.bitwise_right_shift(drawn, place * width, out=row)
    mask = numbers.bitwise_and_(2**width - 1).view(-1)[:n].view(shape)
    # Clamped to the threshold and its neighbour below, then shifted to 0 and 255: a comparison, which writes booleans,
    # takes ten times as long.
    keep = mask.fill_(255) if kept == 1 else mask.clamp_(threshold - 1, threshold).sub_(threshold)
    return keep.view(torch.int8)
