"""Predictions and metrics of a model on bags; masks and dropout off, nothing random."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedpath.core.bags.bag import Bag
from fedpath.core.cohort.examples import Example
from fedpath.core.errors import FedpathError
from fedpath.core.models.protocol import BagModel, BagOutput, Route
from fedpath.core.training.metrics import auc, balanced_accuracy, macro_f1


class NotFiniteError(FedpathError):
    """A model's outputs left the finite numbers."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """How well a model does on a set of slides."""

    loss: float
    """Mean of the model's own loss, without class weights."""
    auc: float | None
    """None when the slides are of one class only."""
    balanced_accuracy: float
    macro_f1: float
    slides: int
    patients: int


@dataclass(frozen=True, slots=True)
class Examined:
    """What a model says about a set of slides, and how well it does."""

    metrics: Metrics
    probabilities_BC: NDArray[np.float64]
    """Of each slide's classes."""
    routes: tuple[Route | None, ...]
    """The branch that each slide went by (B); None of a model without branches."""


def predict(model: BagModel, bags: Iterable[Bag], device: torch.device | str = "cpu") -> NDArray[np.float64]:
    """Return each bag's class probabilities (B, C)."""
    with _evaluating(model, device):
        rows = [_probabilities(model(bag)) for bag in bags]
    return np.stack(rows) if rows else np.empty((0, 0))


def evaluate(model: BagModel, examples: Sequence[Example], device: torch.device | str = "cpu") -> Metrics:
    """Return the metrics of ``model`` on at least one example; errors as ``examine``."""
    return examine(model, examples, device).metrics


def examine(model: BagModel, examples: Sequence[Example], device: torch.device | str = "cpu") -> Examined:
    """Return the metrics of ``model`` on at least one example, and what it says about each.

    Raises:
        NotFiniteError: finite parameters can be so large that the outputs are not.
    """
    if not examples:
        raise ValueError("no examples to evaluate on")
    losses, rows, routes = [], [], []
    with _evaluating(model, device):
        for example in examples:
            output = model(example.bag)
            losses.append(model.loss(output, example.target, None).item())
            rows.append(_probabilities(output))
            routes.append(output.route)
            if not (math.isfinite(losses[-1]) and np.isfinite(rows[-1]).all()):
                raise NotFiniteError(
                    f"the model's output for slide '{example.slide_id}' is not finite",
                    remedy="lower training.learning_rate",
                )
    probabilities_BC = np.stack(rows)
    targets = [example.target for example in examples]
    predicted = probabilities_BC.argmax(axis=1)
    metrics = Metrics(
        loss=float(np.mean(losses)),
        auc=auc(targets, probabilities_BC),
        balanced_accuracy=balanced_accuracy(targets, predicted),
        macro_f1=macro_f1(targets, predicted, probabilities_BC.shape[1]),
        slides=len(examples),
        patients=len({example.patient_id for example in examples}),
    )
    return Examined(metrics, probabilities_BC, tuple(routes))


@contextmanager
def _evaluating(model: BagModel, device: torch.device | str) -> Iterator[None]:
    """Put the model on the device in eval mode, without gradients; its mode is restored."""
    was_training = model.training
    model.to(device).eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def _probabilities(output: BagOutput) -> NDArray[np.float64]:
    probabilities_C: NDArray[np.float64] = output.logits_C.double().softmax(dim=0).cpu().numpy()
    return probabilities_C
