"""FedAdagrad, FedAdam and FedYogi: every weight has a step size of its own.

Reddi et al., ICLR 2021, algorithm 2, for the change Δ and element by element:

    m ← β₁·m + (1 − β₁)·Δ
    v ← v + Δ²                                (FedAdagrad)
    v ← β₂·v + (1 − β₂)·Δ²                    (FedAdam)
    v ← v − (1 − β₂)·Δ²·sign(v − Δ²)          (FedYogi)
    x ← x + η·m / (√v + τ)

From m = 0 and v = τ², without a correction for the start; FedAdagrad has β₁ = 0, as in the paper's experiments.
"""

import numpy as np

from fedpath.core.config.federated import OptimizerSection
from fedpath.core.exchange.stored import BLOCK, F32
from fedpath.core.exchange.wire import Arrays
from fedpath.server.optimizers.moments import Moments

_RATES = {"fedadagrad": 0.1, "fedadam": 0.01, "fedyogi": 0.01}


class Adaptive:
    """See the module's docstring; memory beside the two models: v, and m but for FedAdagrad."""

    def __init__(self, settings: OptimizerSection, reference: Arrays) -> None:
        self._name = settings.name
        self._rate = settings.learning_rate or _RATES[settings.name]
        self._momentum = 0.0 if settings.name == "fedadagrad" else settings.momentum
        self._fading = settings.second_momentum
        self._adaptivity = settings.adaptivity
        kinds = {"second": settings.adaptivity**2}
        self._moments = Moments(reference, kinds | ({"first": 0.0} if self._momentum else {}))
        self._spare = np.empty((2, BLOCK), np.float32)

    def step(self, reference: Arrays, combined: Arrays) -> Arrays:
        """Return the next model."""
        return self._moments.step(reference, combined, self._block)

    def _block(self, reference: F32, change: F32, moments: list[F32]) -> None:
        second, *firsts = moments
        square, other = self._spare[:, : change.size]
        np.multiply(change, change, out=square)
        self._second(second, square, other)
        for first in firsts:
            first *= self._momentum
            change *= 1 - self._momentum
            first += change
            change[:] = first
        np.sqrt(second, out=other)
        other += self._adaptivity
        change /= other
        change *= self._rate
        change += reference

    def _second(self, second: F32, square: F32, other: F32) -> None:
        """Update v in place; ``square`` is Δ² and may be overwritten, ``other`` is free memory."""
        if self._name == "fedadagrad":
            second += square
            return
        if self._name == "fedyogi":
            np.subtract(second, square, out=other)
            np.sign(other, out=other)
            square *= 1 - self._fading
            square *= other
            second -= square
            return
        second *= self._fading
        square *= 1 - self._fading
        second += square

    def state(self) -> Arrays:
        """Return v, and m."""
        return self._moments.state()

    def load(self, state: Arrays) -> None:
        """Continue from an earlier state."""
        self._moments.load(state)
