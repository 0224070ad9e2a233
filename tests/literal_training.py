"""One site's training as it is written down: AdamW, FedProx and SCAFFOLD a formula at a time, in float64."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from fedpath.core.cohort import Example
from fedpath.core.models import BagModel
from fedpath.core.training import TrainSettings, class_weights, learning_rate_at


def literal_training(
    model: BagModel,
    examples: Sequence[Example],
    settings: TrainSettings,
    *,
    seed: int,
    span: tuple[float, float] = (0.0, 1.0),
    proximal: float = 0.0,
    correction: Mapping[str, Tensor] | None = None,
    personal: Collection[str] = (),
) -> dict[str, Tensor]:
    """Train a float64 model in place.

    Args:
        model: without dropout; the caller's to convert to float64.
        examples: all.
        settings: epochs, or steps.
        seed: of the order.
        span: of the schedule.
        proximal: μ.
        correction: c − c_i by parameter; absent ones are 0.
        personal: parameters that neither FedProx nor SCAFFOLD touches.

    Returns:
        The mean of the raw gradients of each parameter that some step reached.
    """
    model.train()
    # As in the model's state, where a module of another package has no prefix.
    parameters = {name.removeprefix("module."): parameter for name, parameter in model.named_parameters()}
    came = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    weights_C = class_weights(examples).double() if settings.class_weights else None
    raw: dict[str, list[Tensor]] = {name: [] for name in parameters}
    first = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    second = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    steps = _steps(len(examples), settings, seed)
    done, total = 0, sum(map(len, steps))
    for step in steps:
        bags = [examples[index] for index in step]
        eta = learning_rate_at(span[0] + (span[1] - span[0]) * done / total, settings.learning_rate)
        done += len(bags)
        losses = [model.loss(model(example.bag), example.target, weights_C) for example in bags]
        loss = sum(losses, torch.zeros((), dtype=torch.float64)) / len(bags)
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        with torch.no_grad():
            for (name, w), gradient in zip(parameters.items(), gradients, strict=True):
                if gradient is None:
                    continue
                g = gradient
                raw[name].append(g)
                if name not in personal:
                    g = g + proximal * (w - came[name])
                    if correction is not None and name in correction:
                        g = g + correction[name]
                t = len(raw[name])
                first[name] = 0.9 * first[name] + 0.1 * g
                second[name] = 0.999 * second[name] + 0.001 * g**2
                w *= 1 - eta * settings.weight_decay
                w -= eta * first[name] / (1 - 0.9**t) / (torch.sqrt(second[name] / (1 - 0.999**t)) + 1e-8)
    model.eval()
    return {name: torch.stack(found).mean(dim=0) for name, found in raw.items() if found}


def _steps(bags: int, settings: TrainSettings, seed: int) -> list[list[int]]:
    """The bags of each step: pass after pass, each shuffled anew and cut into pieces."""
    generator, steps = torch.Generator().manual_seed(seed), list[list[int]]()
    for _ in range(settings.epochs if settings.steps is None else settings.steps):
        order = torch.randperm(bags, generator=generator).tolist()
        steps += [order[start : start + settings.accumulate_bags] for start in range(0, bags, settings.accumulate_bags)]
    return steps[: settings.steps]
