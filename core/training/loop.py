"""The local training loop: AdamW, one bag a step, a half-cosine learning rate over the whole run.

A site in a federation trains a part of the run in each round (`span`); a hospital alone trains it in one go. Both call
``train``. The optimizer starts afresh with each call: its state never travels.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpath.core.cohort.examples import Example
from fedpath.core.errors import ConfigError
from fedpath.core.models.protocol import BagModel
from fedpath.core.models.randomness import seeded


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How to train; the defaults are ACMIL's published recipe, which runs 50 epochs in total."""

    epochs: int = 1
    """Passes over the examples in this call."""
    learning_rate: float = 1e-4
    """At the start of the whole run."""
    weight_decay: float = 1e-5
    class_weights: bool = True
    """Weight the loss by inverse class frequency of these examples."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a call of ``train`` did."""

    loss: float
    """Mean training loss over the last epoch, with masks and dropout on."""
    bags: int
    """Slides trained on."""
    patients: int
    """Distinct patients trained on: the weight of this site's update."""
    seconds: float
    """Wall-clock time."""


def train(
    model: BagModel,
    examples: Sequence[Example],
    settings: TrainSettings,
    *,
    seed: int,
    span: tuple[float, float] = (0.0, 1.0),
    device: torch.device | str = "cpu",
    progress: Callable[[int, int, float], None] | None = None,
    after_epoch: Callable[[int], None] | None = None,
) -> TrainResult:
    """Train ``model`` in place.

    All randomness (order of the bags, masks, dropout) comes from ``seed``: the same call on the same machine gives the
    same bits, whatever ran before, and torch's global generator is left as it was.

    Args:
        model: moved to ``device``, trained there, and left in eval mode.
        examples: at least one.
        settings: see ``TrainSettings``.
        seed: 0 ≤ seed < 2**63.
        span: the part of the whole run's schedule that this call covers; round r of R is (r/R, (r+1)/R).
        device: where to train.
        progress: called after each bag with steps done, steps in total, and the bag's loss.
        after_epoch: called with the number of epochs done; may evaluate the model but not change it.

    Raises:
        ConfigError: the loss left the finite numbers.
    """
    if not examples:
        raise ValueError("no examples to train on")
    if not 0 <= span[0] < span[1] <= 1:
        raise ValueError(f"span {span} is no part of (0, 1)")
    started = time.perf_counter()
    model.to(device)
    weights_C = class_weights(examples).to(device) if settings.class_weights else None
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    n_steps = settings.epochs * len(examples)
    order = torch.Generator().manual_seed(seed)
    step, losses = 0, [0.0]
    with seeded(seed, device):
        for epoch in range(settings.epochs):
            model.train()
            losses = []
            for index in torch.randperm(len(examples), generator=order).tolist():
                position = span[0] + (span[1] - span[0]) * step / n_steps
                optimizer.param_groups[0]["lr"] = learning_rate_at(position, settings.learning_rate)
                optimizer.zero_grad()
                loss = model.loss(model(examples[index].bag), examples[index].target, weights_C)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                step += 1
                losses.append(_finite(loss.item(), examples[index], settings))
                if progress is not None:
                    progress(step, n_steps, losses[-1])
            model.eval()
            if after_epoch is not None:
                after_epoch(epoch + 1)
    return TrainResult(
        loss=math.fsum(losses) / len(losses),
        bags=len(examples),
        patients=len({example.patient_id for example in examples}),
        seconds=time.perf_counter() - started,
    )


def learning_rate_at(position: float, start: float) -> float:
    """Return the half-cosine learning rate at ``position`` (0 to 1) of the whole run: ``start`` at 0, 0 at 1."""
    return start * 0.5 * (1 + math.cos(math.pi * position))


def class_weights(examples: Sequence[Example]) -> Tensor:
    """Return bags / (classes that occur · bags of the class) for each class (C): the mean over the bags is 1.

    A class that does not occur has weight 1; no bag uses it.
    """
    counts = Counter(example.target for example in examples)
    weights_C = torch.ones(max(counts) + 1)
    for target, count in counts.items():
        weights_C[target] = len(examples) / (len(counts) * count)
    return weights_C


def _finite(loss: float, example: Example, settings: TrainSettings) -> float:
    """Return ``loss``; a run whose loss is lost must not go on to send its weights."""
    if not math.isfinite(loss):
        raise ConfigError(
            f"training diverged: the loss of slide '{example.slide_id}' is {loss}",
            remedy=f"lower training.learning_rate (now {settings.learning_rate:g})",
        )
    return loss
