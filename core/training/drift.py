"""What holds a site's training together with the other sites': FedProx's pull and SCAFFOLD's correction.

Both are terms of the gradient. Before each optimizer step the mean gradient g of the step's bags becomes

- FedProx (Li et al., MLSys 2020):              g + μ · (w − w_global), the gradient of loss + μ/2 · ‖w − w_global‖²;
- SCAFFOLD (Karimireddy et al., ICML 2020):     g + c − c_i, and the raw g goes into c_i⁺, the mean over the steps.

They are added once a step, in float32, whatever the precision of the products and however many bags the step learns
from, and before the optimizer: AdamW divides them by the root of its second moment as it does the rest of the gradient,
and its weight decay, which is decoupled, is neither pulled nor corrected. Under plain SGD with learning rate η,
c_i⁺ = c_i − c + (w_global − w) / (K η), option II of the paper; under AdamW only the mean of the gradients is what c_i
stands for, so that is what is computed.

A parameter that no gradient reached in a step (that of a branch the bag does not go through) is not stepped, and so
neither pulled nor corrected; its mean is over the steps that did reach it. Parameters that the site keeps for itself
have no global counterpart and are left alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpath.core.config.federated import LocalSection
from fedpath.core.models.protocol import BagModel
from fedpath.core.training.engines.base import trained_parameters


def copies_of(local: LocalSection) -> int:
    """Return how many numbers a method holds on the device for each number that is trained."""
    return {"plain": 0, "fedprox": 1, "scaffold": 2}[local.method]


@dataclass(frozen=True, slots=True)
class DriftTerms:
    """What is to be added. Names are those of the model's ``state_dict``."""

    proximal: float = 0.0
    """μ of FedProx; w_global is the model as it is when training starts."""
    correction: Mapping[str, Tensor] | None = None
    """c − c_i of SCAFFOLD, 0 where a parameter is not named; None without SCAFFOLD."""
    personal: frozenset[str] = frozenset()
    """Parameters that the site keeps for itself."""


class Drift:
    """The terms at work on one model.

    Args:
        model: on the device where it is trained, as it came.
        terms: what to add.
    """

    def __init__(self, model: BagModel, terms: DriftTerms) -> None:
        self._proximal = terms.proximal
        self._parameters = {
            name: parameter for name, (_, parameter) in trained_parameters(model).items() if name not in terms.personal
        }
        self._came: dict[str, Tensor] = {}
        if terms.proximal:
            self._came = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._correction: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] | None = None
        self._steps: dict[str, int] = {}
        if terms.correction is not None:
            self._correction = {
                name: terms.correction[name].to(parameter)
                for name, parameter in self._parameters.items()
                if name in terms.correction
            }
            self._sums = {name: torch.zeros_like(parameter) for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def act(self) -> None:
        """Note the gradients of a step, and add the terms to them."""
        for name, parameter in self._parameters.items():
            gradient = parameter.grad
            if gradient is None:
                continue
            if self._sums is not None:
                self._sums[name] += gradient
                self._steps[name] = self._steps.get(name, 0) + 1
            if name in self._came:
                gradient.add_(parameter - self._came[name], alpha=self._proximal)
            if name in self._correction:
                gradient += self._correction[name]

    def mean_gradients(self) -> dict[str, Tensor] | None:
        """Return the mean of the raw gradients over the steps that reached each parameter, on the CPU.

        Parameters that none reached are absent. None without SCAFFOLD.
        """
        if self._sums is None:
            return None
        return {name: (self._sums[name] / steps).cpu() for name, steps in self._steps.items()}
