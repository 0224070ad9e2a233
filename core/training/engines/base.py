"""What the training loop asks of an engine, and which weights an engine steps how fast."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from fedpath.core.bags.bag import Bag
from fedpath.core.models.protocol import BagModel, BagOutput


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Which engine, and how it splits the work; see ``choose.engine_settings``."""

    kind: Literal["torch", "deepspeed"] = "torch"
    zero_stage: int = 1
    """Of DeepSpeed: what is split among the processes."""
    processes: int = 1
    """Of DeepSpeed: each trains on a bag of its own at the same time."""
    offload: bool = False
    """Of DeepSpeed: keep the optimizer's state in the CPU's memory."""


TORCH = EngineSettings()


class Engine(Protocol):
    """Gradients of bags add up until ``step`` uses and forgets them.

    One engine is one process. Where there are several, each calls every method as often as the others.
    """

    rank: int
    """Which of the processes this is, from 0."""
    processes: int
    """How many there are; each has a bag of its own between two ``step``s."""

    def forward(self, bag: Bag) -> BagOutput:
        """Return the model's output, in float32."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar; over the processes, gradients add up too."""

    def losses(self, loss: Tensor) -> list[float]:
        """Return what each process passed, by rank."""

    def step(self, learning_rate: float) -> None:
        """Step the weights, and forget the gradients."""


def changing(model: nn.Module) -> dict[str, Tensor]:
    """Return the entries of the model's state that training changes: all but frozen parameters."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def trained_parameters(model: BagModel) -> dict[str, tuple[str, nn.Parameter]]:
    """Return what an optimizer steps, in the model's order, each with its parameter group.

    Names are those of ``state_dict``, which a model may have changed. Left out are frozen parameters, and groups that
    the hospitals agreed on or that are resident.
    """
    names: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), name)
    of_parameter = {name: group for group, members in model.parameter_groups().items() for name in members}
    held = model.agreed_groups | model.resident_groups
    return {
        name: (group, parameter)
        for parameter in model.parameters()
        if parameter.requires_grad and (group := of_parameter.get(name := names.get(id(parameter), ""), "")) not in held
    }


def parameter_groups(model: BagModel) -> list[dict[str, Any]]:
    """Return what an optimizer steps, in the model's order: one group for each factor on the learning rate.

    The factor stands under ``scale``.
    """
    scales: Mapping[str, float] = model.learning_rate_scales
    groups: dict[float, list[nn.Parameter]] = {}
    for group, parameter in trained_parameters(model).values():
        groups.setdefault(scales.get(group, 1.0), []).append(parameter)
    return [{"params": parameters, "scale": scale} for scale, parameters in groups.items()]


def set_learning_rate(groups: Iterable[dict[str, Any]], learning_rate: float) -> None:
    """Give each of an optimizer's groups its part of the learning rate."""
    for group in groups:
        group["lr"] = learning_rate * group["scale"]
