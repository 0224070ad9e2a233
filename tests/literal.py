"""What the literal definitions of bag models share: numbers one at a time, in float64, without the code under test."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedpath.core.bags import Bag
from fedpath.core.models import BagModel


def random_bag(n_instances: int, width: int, dtype: torch.dtype = torch.float64) -> Bag:
    """The same bag for the same size, all its patches at one place."""
    generator = torch.Generator().manual_seed(n_instances)
    features_ND = torch.randn(n_instances, width, generator=generator, dtype=torch.float64).to(dtype)
    return Bag("slide", features_ND, torch.zeros(n_instances, 2, dtype=torch.int64), 256)


def total(numbers: Sequence[Tensor]) -> Tensor:
    """Σ, of float64 tensors."""
    return sum(numbers, torch.zeros((), dtype=torch.float64))


def affine(weight: Tensor, bias: Tensor, vector: Sequence[Tensor]) -> Tensor:
    """w · v + b."""
    return total([w * v for w, v in zip(weight, vector, strict=True)]) + bias


def softmax(numbers: Sequence[Tensor]) -> list[Tensor]:
    whole = total([torch.exp(number) for number in numbers])
    return [torch.exp(number) / whole for number in numbers]


def cross_entropy(logits: Sequence[Tensor], target: int, weights_C: Tensor | None = None) -> Tensor:
    loss = -torch.log(softmax(logits)[target])
    return loss if weights_C is None else weights_C[target] * loss


def stacked(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(list(row)) for row in rows])


def record_kept(dropout: nn.Module) -> list[Tensor]:
    """Return a list that gets, of each later call of ``dropout``, which values it kept."""
    kept: list[Tensor] = []
    dropout.register_forward_hook(lambda _module, _inputs, output: kept.append(output.detach() != 0))
    return kept


def assert_gradients_equal(model: BagModel, loss: Tensor, expected: Tensor) -> None:
    """Compare the loss and its gradient in every parameter with the literal ones."""
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    names = [name for name, _ in model.named_parameters()]
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss, parameters)
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True, materialize_grads=True)
    for name, got, literal in zip(names, gradients, wanted, strict=True):
        torch.testing.assert_close(got, literal, rtol=1e-9, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")
