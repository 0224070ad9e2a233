"""What the multimodal models share: the slide's encoder, the clinical encoder, a branch, what a record may be used for.

Every model here holds its parts in this order: slide encoder, single-modal branch, clinical parts. The parts that two
of them have in common therefore start from the same numbers when they are built from the same seed.
"""

from abc import abstractmethod
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from fedpath.core.bags.bag import Bag
from fedpath.core.clinical.record import ClinicalRecord
from fedpath.core.clinical.standard import Standard
from fedpath.core.config.loading import Section
from fedpath.core.models.multimodal.coder import ClinicalCoder
from fedpath.core.models.protocol import BagModel

_CLINICAL_HIDDEN, CLINICAL_WIDTH = 64, 256  # the widths of the published clinical encoder


class MultimodalOptions(Section):
    """The options that all models with a slide encoder of choice share."""

    encoder: str = Field(default="abmil", description="the slide's encoder: a model of fedpath without clinical data")
    encoder_options: dict[str, Any] = Field(default_factory=dict, description="options of that model")
    encoder_loss: Annotated[float, Field(ge=0)] = Field(
        default=1.0, description="weight of the encoder's own loss, such as ACMIL's of its branches; 0 leaves it out"
    )
    hidden: Annotated[int, Field(ge=1, le=8192)] = Field(default=256, description="width H of a branch's hidden layer")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.25, description="dropout on a branch's hidden layer, in training"
    )


class MultimodalModel(BagModel):
    """A bag model that reads clinical records by what the federation agreed on."""

    agreed_groups = frozenset({"standard"})
    coder: ClinicalCoder

    def use_standard(self, standard: Standard) -> None:
        """Take over what the hospitals agreed on."""
        self.coder.use_standard(standard)

    def record_of(self, bag: Bag) -> ClinicalRecord | None:
        """Return the bag's clinical record where the model can use it: some hospital must have trained on some."""
        return bag.clinical if self.coder.is_agreed else None

    def trained_groups(self, bag: Bag) -> frozenset[str]:
        """Return the groups that a training step on ``bag`` changes."""
        groups = frozenset(self.parameter_groups()) - self.agreed_groups
        return groups if self.record_of(bag) is not None else groups - self.clinical_groups

    def parameter_groups(self) -> dict[str, list[str]]:
        """Name the groups by what each entry of the state is for."""
        groups: dict[str, list[str]] = {}
        for name in self.state_dict():
            groups.setdefault(self.group_of(name.partition(".")[0]), []).append(name)
        return groups

    @abstractmethod
    def group_of(self, part: str) -> str:
        """Return the group of one of the model's parts."""


class ClinicalEncoder(nn.Sequential):
    """h_c = relu(W₂ relu(W₁ c)): an MLP E → 64 → 256 with biases; (E) to (M)."""

    def __init__(self, n_entries: int) -> None:
        super().__init__(
            nn.Linear(n_entries, _CLINICAL_HIDDEN), nn.ReLU(), nn.Linear(_CLINICAL_HIDDEN, CLINICAL_WIDTH), nn.ReLU()
        )


class Hidden(nn.Sequential):
    """relu(W x + b)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.ReLU())
