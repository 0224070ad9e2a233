"""FedAvg and FedAvgM: the model moves along the change, or along a sum of changes that fades.

McMahan et al., AISTATS 2017: x ← x + η·Δ, with η = 1 the combined model itself. Hsu et al., 2019 (arXiv 1909.06335):
m ← β·m + Δ, x ← x + η·m.
"""

from fedpath.core.config.federated import OptimizerSection
from fedpath.core.exchange.stored import F32
from fedpath.core.exchange.wire import Arrays
from fedpath.server.optimizers.moments import Moments


class Averaging:
    """See the module's docstring; memory beside the two models: one moment for FedAvgM, none for FedAvg."""

    def __init__(self, settings: OptimizerSection, reference: Arrays) -> None:
        self._rate = settings.learning_rate or 1.0
        self._momentum = settings.momentum if settings.name == "fedavgm" else 0.0
        self._moments = Moments(reference, {"momentum": 0.0} if self._momentum else {})

    def step(self, reference: Arrays, combined: Arrays) -> Arrays:
        """Return the next model."""
        if self._rate == 1 and not self._momentum:
            return combined
        return self._moments.step(reference, combined, self._block)

    def _block(self, reference: F32, change: F32, moments: list[F32]) -> None:
        for momentum in moments:
            momentum *= self._momentum
            momentum += change
            change[:] = momentum
        change *= self._rate
        change += reference

    def state(self) -> Arrays:
        """Return the momentum."""
        return self._moments.state()

    def load(self, state: Arrays) -> None:
        """Continue from an earlier state."""
        self._moments.load(state)
