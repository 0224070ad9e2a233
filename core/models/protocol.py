"""What the federation asks of a bag model: ``forward``, ``loss`` and the names of its parameter groups."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fedpath.core.bags.bag import Bag
from fedpath.core.clinical.record import ClinicalRecord

Route = Literal["single-modal", "multi-modal"]


@dataclass(frozen=True, slots=True)
class BagOutput:
    """What a model says about one bag. Shape letters: see ``fedpath.core.models``."""

    logits_C: Tensor
    """Class scores of the slide, before the softmax."""
    attention_KN: Tensor
    """One row a branch or head, softmaxed over the instances: every row is ≥ 0 and sums to 1."""
    slide_vector_L: Tensor
    """The pooled representation that the slide's head sees."""
    branch_logits_KC: Tensor | None = None
    """Class scores of each branch, for models that supervise their branches."""
    selection_N: Tensor | None = None
    """How much each instance is worth keeping, for models that select; any real numbers, higher is better."""
    route: Route | None = None
    """Which branch ``logits_C`` come from, for models that have one for patients with clinical data and one without."""

    @property
    def attention_N(self) -> Tensor:
        """Attention of each instance, the mean over branches or heads; sums to 1."""
        return self.attention_KN.mean(dim=0)


def change_tensors(output: BagOutput, change: Callable[[Tensor], Tensor]) -> BagOutput:
    """Return an output with ``change`` applied to each of its tensors, in the order of its fields.

    Tensors in tuples and in outputs inside of it are among them; all else stays as it is.
    """

    def changed(value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(value)
        if isinstance(value, BagOutput):
            fields = (field.name for field in dataclasses.fields(value))
            return dataclasses.replace(value, **{name: changed(getattr(value, name)) for name in fields})
        return type(value)(map(changed, value)) if isinstance(value, tuple) else value

    with_changes: BagOutput = changed(output)
    return with_changes


class BagModel(nn.Module, ABC):
    """A slide-level classifier. Everything else (training, exchange, reports) knows a model only through this class."""

    clinical_groups: ClassVar[frozenset[str]] = frozenset()
    """Parameter groups that only patients with clinical data train."""
    agreed_groups: ClassVar[frozenset[str]] = frozenset()
    """Groups that hold what the hospitals agreed on before round 1: nobody trains or sends them."""
    resident_groups: ClassVar[frozenset[str]] = frozenset()
    """Groups that each side has already, to the bit, from a file: nobody trains them and they never travel."""
    slide_width: int = 0
    """L, the width of ``slide_vector_L``; 0 where a model does not say it beforehand, and can be no encoder."""

    if TYPE_CHECKING:
        # nn.Module types this as Any; callers of a bag model get the output's type.
        def __call__(self, bag: Bag) -> BagOutput:
            """Run ``forward``."""
            ...

    @abstractmethod
    def forward(self, bag: Bag) -> BagOutput:
        """Classify one bag of N ≥ 1 instances; its features may be of any float type, on any device."""

    def loss(self, output: BagOutput, target: int, class_weights_C: Tensor | None = None) -> Tensor:
        """Return the training loss of one bag as a scalar: the slide's cross-entropy, unless a model adds to it.

        Args:
            output: what ``forward`` returned for the bag.
            target: class index.
            class_weights_C: factor of each class on the bag's classification terms; all 1 when absent.
        """
        return weighted_cross_entropy(output.logits_C[None], target, class_weights_C)

    def parameter_groups(self) -> dict[str, list[str]]:
        """Name disjoint groups that together hold every entry of ``state_dict``; one, ``image``, by default.

        A site sends only the groups that it trained; each group is averaged over the sites that sent it.
        """
        return {"image": list(self.state_dict())}

    def record_of(self, bag: Bag) -> ClinicalRecord | None:
        """Return the bag's clinical record where the model can use it."""
        return bag.clinical

    def trained_groups(self, bag: Bag) -> frozenset[str]:
        """Return the groups that a training step on ``bag`` changes."""
        groups = self.trainable_groups
        return groups if self.record_of(bag) is not None else groups - self.clinical_groups

    @cached_property
    def trainable_groups(self) -> frozenset[str]:
        """The groups that some bag may train."""
        return frozenset(self.parameter_groups()) - self.agreed_groups - self.resident_groups

    @property
    def learning_rate_scales(self) -> Mapping[str, float]:
        """Factors on the learning rate, by group; 1 for groups that are not named."""
        return {}


def weighted_cross_entropy(logits_BC: Tensor, target: int, class_weights_C: Tensor | None) -> Tensor:
    """Return the mean over B predictions of one bag of ``-w[target] · log softmax(logits)[target]``.

    torch's own ``weight`` with ``reduction="mean"`` divides by the summed weights: with one bag a step the weight
    cancels and the option does nothing. Here it multiplies.
    """
    targets_B = torch.full((logits_BC.shape[0],), target, device=logits_BC.device)
    loss = nn.functional.cross_entropy(logits_BC, targets_B)
    return loss if class_weights_C is None else loss * class_weights_C[target].to(loss)
