"""Weights drawn from a seed, the same to the bit on every machine.

Normal numbers from a generator differ between processors. These are whole numbers, turned into floats by correctly
rounded operations only.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

_UNIFORM_SD = 73.9
"""Standard deviation of whole numbers drawn evenly from -128…127."""


def drawn(shape: tuple[int, ...], sd: float, generator: torch.Generator) -> Tensor:
    """Return float32 numbers of mean about 0 and standard deviation ``sd``."""
    whole = torch.randint(-128, 128, shape, generator=generator, device="cpu")
    return (whole.double() * (sd / _UNIFORM_SD)).float()


def drawn_state(blank: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Return numbers for a state whose shapes are those of ``blank``: He's scale for what multiplies, norms at rest.

    Args:
        blank: a state dict, on the meta device for example.
        seed: the same one gives the same bits.
    """
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name, like in blank.items():
        shape, last = tuple(like.shape), name.rpartition(".")[2]
        if last in ("cls_token", "pos_embed"):
            state[name] = drawn(shape, 0.5, generator)
        elif len(shape) > 1:
            state[name] = drawn(shape, math.sqrt(2 / math.prod(shape[1:])), generator)
        else:
            at_rest = torch.ones if last in ("weight", "running_var", "gamma") else torch.zeros
            state[name] = at_rest(shape, device="cpu")
    return state
