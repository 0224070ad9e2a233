"""A model's output as plain tensors, and back: DeepSpeed finds tensors in tuples only, to hang its hooks on."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from fedpath.core.models.protocol import BagModel, BagOutput


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a model's output, also in tuples and in outputs inside of it, in a fixed order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, BagOutput):
        for field in dataclasses.fields(value):
            yield from tensors_of(getattr(value, field.name))
    elif isinstance(value, tuple):
        for part in value:
            yield from tensors_of(part)


def rebuilt(output: BagOutput, tensors: tuple[Tensor, ...]) -> BagOutput:
    """Return ``output`` with ``tensors`` in place of its own, in the order of ``tensors_of``."""
    remaining = iter(tensors)

    def put(value: Any) -> Any:
        if isinstance(value, Tensor):
            return next(remaining)
        if isinstance(value, BagOutput):
            fields = [field.name for field in dataclasses.fields(value)]
            return dataclasses.replace(value, **{name: put(getattr(value, name)) for name in fields})
        return type(value)(map(put, value)) if isinstance(value, tuple) else value

    with_tensors: BagOutput = put(output)
    return with_tensors


@contextmanager
def shown_as_tensors(module: nn.Module) -> Iterator[None]:
    """Let the hooks that are set inside the block see the outputs of the bag models in ``module`` as tuples.

    Who calls the models sees no difference.
    """
    outputs: list[BagOutput] = []

    def take_apart(_module: nn.Module, _arguments: object, output: BagOutput) -> tuple[Tensor, ...]:
        outputs.append(output)
        return tuple(tensors_of(output))

    def put_together(_module: nn.Module, _arguments: object, tensors: tuple[Tensor, ...]) -> BagOutput:
        return rebuilt(outputs.pop(), tensors)

    # Hooks run in the order in which they were set.
    models = [each for each in module.modules() if isinstance(each, BagModel)]
    for model in models:
        model.register_forward_hook(take_apart)
    yield
    for model in models:
        model.register_forward_hook(put_together)
