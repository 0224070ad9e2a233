"""How to train: what the loop and the processes that run it for it are told."""

from dataclasses import dataclass

from fedpath.core.training.precision import Precision


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
    accumulate_bags: int = 1
    """Bags a step learns from: the mean of their gradients. The last step of an epoch has what remains."""
    precision: Precision = "auto"
    """Of the matrix products; see ``fedpath.core.training.precision``."""
    steps: int | None = None
    """Optimizer steps of this call, in place of `epochs`: see ``fedpath.core.training.order``."""
