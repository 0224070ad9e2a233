"""torch itself: autograd and fused AdamW, in this process."""

import torch
from torch import Tensor

from fedpath.core.bags.bag import Bag
from fedpath.core.models.protocol import BagModel, BagOutput
from fedpath.core.training.drift import Drift, DriftTerms
from fedpath.core.training.engines.base import parameter_groups, set_learning_rate
from fedpath.core.training.precision import Chosen, forward


class TorchEngine:
    """See ``Engine``."""

    rank, processes = 0, 1

    def __init__(
        self,
        model: BagModel,
        *,
        weight_decay: float,
        device: torch.device,
        precision: Chosen,
        drift: DriftTerms | None = None,
    ) -> None:
        self._model, self._device, self._precision = model, device, precision
        self._optimizer = torch.optim.AdamW(parameter_groups(model), 0.0, weight_decay=weight_decay, fused=True)
        self._optimizer.zero_grad()
        self._drift = None if drift is None else Drift(model, drift)

    def forward(self, bag: Bag) -> BagOutput:
        """Return the model's output, in float32."""
        return forward(self._model, bag, device=self._device, precision=self._precision)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar."""
        loss.backward()  # type: ignore[no-untyped-call]

    def losses(self, loss: Tensor) -> list[float]:
        """Return the one loss."""
        return [loss.item()]

    def step(self, learning_rate: float) -> None:
        """Step the weights, and forget the gradients."""
        if self._drift is not None:
            self._drift.act()
        set_learning_rate(self._optimizer.param_groups, learning_rate)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def mean_gradients(self) -> dict[str, Tensor] | None:
        """See ``Drift``; None without SCAFFOLD."""
        return None if self._drift is None else self._drift.mean_gradients()
