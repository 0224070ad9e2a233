"""A model's output as plain tensors, and back: DeepSpeed finds tensors in tuples only, to hang its hooks on."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from fedpath.core.models.protocol import BagModel, BagOutput, change_tensors


def tensors_of(output: BagOutput) -> tuple[Tensor, ...]:
    """Return the tensors in a model's output, in the order of ``change_tensors``."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    change_tensors(output, note)
    return tuple(found)


def rebuilt(output: BagOutput, tensors: tuple[Tensor, ...]) -> BagOutput:
    """Return ``output`` with ``tensors`` in place of its own, in the order of ``tensors_of``."""
    remaining = iter(tensors)
    return change_tensors(output, lambda _: next(remaining))


@contextmanager
def shown_as_tensors(module: nn.Module) -> Iterator[None]:
    """Let the hooks that are set inside the block see the outputs of the bag models in ``module`` as tuples.

    Who calls the models sees no difference.
    """
    outputs: list[BagOutput] = []

    def take_apart(_module: nn.Module, _arguments: object, output: BagOutput) -> tuple[Tensor, ...]:
        outputs.append(output)
        return tensors_of(output)

    def put_together(_module: nn.Module, _arguments: object, tensors: tuple[Tensor, ...]) -> BagOutput:
        return rebuilt(outputs.pop(), tensors)

    # Hooks run in the order in which they were set.
    models = [each for each in module.modules() if isinstance(each, BagModel)]
    for model in models:
        model.register_forward_hook(take_apart)
    yield
    for model in models:
        model.register_forward_hook(put_together)
