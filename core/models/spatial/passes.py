"""What the forward and backward passes of block-wise attention share: dropout, the softmax's gradient."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpath.core.models.dropout import keep_mask, kept_share
from fedpath.core.models.randomness import seeded


@dataclass(frozen=True, slots=True)
class Dropout:
    """Dropout of attention probabilities: the same ``seed`` draws the same masks."""

    rate: float
    seed: int

    def mask(self, like: Tensor) -> Tensor:
        """Return factors for ``like``: 0 with the rate's probability, else such that the mean is 1."""
        return keep_mask(tuple(like.shape), self.rate, like.device).to(like.dtype).div_(kept_share(self.rate))


def drawing(dropout: Dropout | None, like: Tensor) -> AbstractContextManager[None]:
    """Return the context in which this pass's masks are drawn."""
    return nullcontext() if dropout is None else seeded(dropout.seed, like.device)


def softmax_backward(grad: Tensor, probabilities: Tensor) -> None:
    """Turn the gradient of the probabilities into that of the scores, in place: p ⊙ (g − Σ p g) along the last axis."""
    torch.ops.aten._softmax_backward_data.out(grad, probabilities, grad.dim() - 1, grad.dtype, grad_input=grad)
