"""Dropout from one random byte an element: ``torch.bernoulli_`` would cost a third of a pooling model's step.

One byte decides 256 cases, so a rate is rounded to a multiple of 1/256: 0.25 and 0.5 are exact, 0.1 becomes 26/256 =
0.1016. Whoever scales what is kept divides by ``kept_share``, the share that is really kept: the expectation is exact.
"""

from math import prod

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
    """Return a uint8 mask: 1 with probability ``kept_share(rate)``, else 0.

    The bytes come from torch's global generator of ``device``, eight at a time. Masks drawn one after the other are
    parts of one large mask as long as their sizes are multiples of eight.
    """
    return _keep_bits(shape, rate, device).neg_().view(torch.uint8)


def drop_(values: Tensor, rate: float, scratch: Scratch | None = None) -> Tensor:
    """Zero elements of ``values`` in place where ``keep_mask`` would be 0, do not scale the others, and return it.

    ``scratch`` lends the memory of intermediates to callers that go through many chunks.
    """
    # Masked as integers: multiplying would first turn the mask into floats, element by element.
    bits = _keep_bits(tuple(values.shape), rate, values.device)
    integer = _INTEGERS[values.element_size()]
    wide = (scratch or Scratch(values.device))("bits", values.shape, integer).copy_(bits)
    values.view(integer).bitwise_and_(wide)
    return values


def _keep_bits(shape: tuple[int, ...], rate: float, device: torch.device | str) -> Tensor:
    """Return an int8 mask: all bits set (-1) to keep, none (0) to drop."""
    n = prod(shape)
    words = torch.empty((n + 7) // 8, dtype=torch.int64, device=device).random_(-(2**63), None)
    signed = words.view(torch.int8)[:n].view(shape)
    # Bytes below the threshold are kept: clamped to the two values at it, then shifted to -1 and 0. A comparison, which
    # writes booleans, takes ten times as long.
    threshold = round(256 * kept_share(rate)) - 128
    return signed.fill_(-1) if threshold > 127 else signed.clamp_(threshold - 1, threshold).sub_(threshold)
