"""The local training loop: AdamW, one bag or a few a step, a half-cosine learning rate over the whole run.

A site in a federation trains a part of the run in each round (`span`); a hospital alone trains it in one go. Both call
``train``. The optimizer starts afresh with each call: its state never travels. What steps the weights is an engine
(`fedpath.core.training.engines`): torch here, or DeepSpeed in processes of its own, which run the same loop.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedpath.core.cohort.examples import Example
from fedpath.core.errors import ConfigError
from fedpath.core.models.protocol import BagModel
from fedpath.core.models.randomness import seeded
from fedpath.core.training.device import deterministic
from fedpath.core.training.drift import DriftTerms
from fedpath.core.training.engines.base import TORCH, Engine, EngineSettings
from fedpath.core.training.engines.launch import train_in_processes
from fedpath.core.training.engines.torch_engine import TorchEngine
from fedpath.core.training.order import bags_in, course, pieces
from fedpath.core.training.precision import choose_precision
from fedpath.core.training.schedule import learning_rate_at
from fedpath.core.training.settings import TrainSettings

_APART = 0x9E3779B97F4A7C15
"""Between the seeds of two processes: an odd number with no pattern in its bits."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a call of ``train`` did."""

    loss: float
    """Mean training loss over the last epoch done, or over as many of the last bags, with masks and dropout on."""
    bags: int
    """Slides trained on."""
    patients: int
    """Distinct patients trained on."""
    steps: int
    """Optimizer steps done."""
    patients_by_group: dict[str, int]
    """Distinct patients that trained each parameter group: the weight of this site's part in it. Groups that nobody
    trained are absent."""
    seconds: float
    """Wall-clock time."""
    mean_gradients: dict[str, Tensor] | None = None
    """SCAFFOLD: c_i⁺ by the parameter's name, without those that no step reached (``fedpath.core.training.drift``)."""


def train(
    model: BagModel,
    examples: Sequence[Example],
    settings: TrainSettings,
    *,
    seed: int,
    span: tuple[float, float] = (0.0, 1.0),
    device: torch.device | str = "cpu",
    progress: Callable[[int, int, float], None] | None = None,
    after_epoch: Callable[[int], bool | None] | None = None,
    engine: EngineSettings = TORCH,
    drift: DriftTerms | None = None,
) -> TrainResult:
    """Train ``model`` in place.

    All randomness (order of the bags, masks, dropout) comes from ``seed``: the same call on the same machine gives the
    same bits, whatever ran before, and torch's global generator is left as it was. The schedule counts bags, so it is
    the same course however many of them a step accumulates: a step has the learning rate of its first bag.

    Args:
        model: moved to ``device``, trained there, and left in eval mode; DeepSpeed's processes have copies of their
            own, and the model itself is on the CPU afterwards.
        examples: at least one.
        settings: see ``TrainSettings``.
        seed: 0 ≤ seed < 2**63.
        span: the part of the whole run's schedule that this call covers; round r of R is (r/R, (r+1)/R).
        device: where to train.
        progress: called after each bag with bags done, bags in total, and the bag's loss.
        after_epoch: called with the number of epochs done; may evaluate the model but not change it. Training ends
            early when it returns True.
        engine: see ``engine_settings``.
        drift: what FedProx or SCAFFOLD add to the gradients.

    Raises:
        ConfigError: the loss left the finite numbers, the device lacks the precision asked for, or the engine cannot
            do what is asked of it.
        TrainingProcessError: a process of DeepSpeed failed.
    """
    if not examples:
        raise ValueError("no examples to train on")
    if not 0 <= span[0] < span[1] <= 1:
        raise ValueError(f"span {span} is no part of (0, 1)")
    started = time.perf_counter()
    device = torch.device(device)
    precision = choose_precision(settings.precision, device)
    settings = replace(settings, precision=precision)
    epochs: list[int] = []

    def count_epochs(epoch: int) -> bool | None:
        epochs.append(epoch)
        return after_epoch(epoch) if after_epoch is not None else None

    mean_gradients = None
    if engine.kind == "deepspeed":
        losses = train_in_processes(
            model,
            examples,
            settings,
            seed=seed,
            span=span,
            device=device,
            engine=engine,
            progress=progress,
            after_epoch=None if after_epoch is None else count_epochs,
            drift=drift,
        )
    else:
        model.to(device)
        here = TorchEngine(model, weight_decay=settings.weight_decay, device=device, precision=precision, drift=drift)
        losses = run(
            here,
            model,
            examples,
            settings,
            seed=seed,
            span=span,
            device=device,
            progress=progress,
            after_epoch=None if after_epoch is None else count_epochs,
        )
        mean_gradients = here.mean_gradients()
    passes = course(len(examples), settings, seed=seed)
    if after_epoch is not None:
        passes = passes[: len(epochs)]
    # Fewer steps than an epoch has leave some out, and what is counted is who was trained on.
    used = [examples[index] for index in sorted({index for steps in passes for step in steps for index in step})]
    return TrainResult(
        loss=math.fsum(losses) / len(losses),
        bags=len(used),
        patients=len({example.patient_id for example in used}),
        steps=sum(map(len, passes)),
        patients_by_group=_patients_by_group(model, used),
        seconds=time.perf_counter() - started,
        mean_gradients=mean_gradients,
    )


def run(
    engine: Engine,
    model: BagModel,
    examples: Sequence[Example],
    settings: TrainSettings,
    *,
    seed: int,
    span: tuple[float, float],
    device: torch.device,
    progress: Callable[[int, int, float], None] | None,
    after_epoch: Callable[[int], bool | None] | None,
) -> list[float]:
    """Run the loop itself with an engine that has ``model``: the part of one process. Arguments as ``train``.

    Returns:
        The losses of the last epoch done, in the order of its bags; where that is not a whole one, those before come
        first, as many as there are bags.
    """
    weights_C = class_weights(examples).to(device) if settings.class_weights else None
    passes = course(len(examples), settings, seed=seed)
    n_bags, done = bags_in(passes), 0
    losses: list[float] = []
    # Each process draws masks and dropout of its own; the order of the bags is everybody's.
    with seeded((seed + engine.rank * _APART) % 2**63, device), deterministic(device):
        for epoch, steps in enumerate(passes, 1):
            model.train()
            for group in steps:
                position = span[0] + (span[1] - span[0]) * done / n_bags
                for hand in pieces(group, engine.processes):
                    # An epoch's last hand may be too small: who gets no bag goes through the first one for nothing.
                    dealt = engine.rank < len(hand)
                    example = examples[hand[engine.rank if dealt else 0]]
                    loss = model.loss(engine.forward(example.bag), example.target, weights_C)
                    engine.backward(loss / len(group) if dealt else loss * 0)
                    for index, value in zip(hand, engine.losses(loss), strict=False):
                        done += 1
                        losses.append(_finite(value, examples[index], settings))
                        if progress is not None:
                            progress(done, n_bags, value)
                engine.step(learning_rate_at(position, settings.learning_rate))
            model.eval()
            losses = losses[-len(examples) :]
            if after_epoch is not None and after_epoch(epoch):
                break
    return losses


def _patients_by_group(model: BagModel, examples: Sequence[Example]) -> dict[str, int]:
    """Return how many distinct patients have a bag that trains each group; one such bag is enough."""
    patients: dict[str, set[str]] = {}
    for example in examples:
        for group in model.trained_groups(example.bag):
            patients.setdefault(group, set()).add(example.patient_id)
    return {group: len(patients[group]) for group in sorted(patients)}


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
