"""How the coordinator steps from the round's model towards what the updates combined to.

The change Δ = combined − reference is a gradient that points the other way (Reddi et al., ICLR 2021): FedAvg takes it
as it is, the others keep moments of it between the rounds.
"""

from typing import Protocol

from fedpath.core.config.federated import OptimizerSection
from fedpath.core.exchange.wire import Arrays
from fedpath.server.optimizers.adaptive import Adaptive
from fedpath.server.optimizers.averaging import Averaging


class ServerOptimizer(Protocol):
    """Steps the global model; what it remembers between rounds goes into the checkpoint."""

    def step(self, reference: Arrays, combined: Arrays) -> Arrays:
        """Return the next model; may overwrite ``combined``, leaves ``reference`` as it is.

        An array that did not change (nobody sent its group) stays, with all that is remembered about it. Running
        statistics of normalisation layers are no weights: they become the combined ones.

        Args:
            reference: the round's model, float32, "group/parameter".
            combined: what the updates combined to, of the same names and shapes.
        """

    def state(self) -> Arrays:
        """Return what is remembered, float32; the arrays themselves, that the next step overwrites."""

    def load(self, state: Arrays) -> None:
        """Continue from what `state` returned.

        Raises:
            FederationError: it is of another optimizer or another model.
        """


def server_optimizer(settings: OptimizerSection, reference: Arrays) -> ServerOptimizer:
    """Return the optimizer of `[optimizer]` before its first step; ``reference`` gives names and shapes."""
    if settings.name in ("fedavg", "fedavgm"):
        return Averaging(settings, reference)
    return Adaptive(settings, reference)
