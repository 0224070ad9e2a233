"""What the multimodal models share: the slide's encoder, the branches, what a record may be used for.

Every model here holds its parts in this order: slide encoder, single-modal branch, clinical parts. The parts that two
of them have in common therefore start from the same numbers when they are built from the same seed.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from fedpath.core.bags.bag import Bag
from fedpath.core.clinical.record import ClinicalRecord
from fedpath.core.clinical.standard import Standard
from fedpath.core.config.loading import Section
from fedpath.core.models.multimodal.coder import ClinicalCoder
from fedpath.core.models.protocol import BagModel, BagOutput

_CLINICAL_HIDDEN, CLINICAL_WIDTH = 64, 256  # the widths of the published clinical encoder

Weight = Annotated[float, Field(ge=0, le=1000)]
Rate = Annotated[float, Field(ge=0, lt=1)]

# The group of an entry of a model's state by how its name starts; the first that fits.
_GROUPS = {
    "encoder.": "image",
    "single.prompt": "prompt",
    "single.": "single_head",
    "multi.clinical.": "clinical",
    "multi.fusion.": "fusion",
    "multi.head.": "multi_head",
    "prior": "single_head",
    "decoder.": "decoder",
    "coder.": "standard",
}


class EncodedOptions(Section):
    """The options of the models that have a slide encoder of choice."""

    encoder: str = Field(default="abmil", description="the slide's encoder: a model of fedpath that reads slides alone")
    encoder_options: dict[str, Any] = Field(default_factory=dict, description="options of that model")
    encoder_loss: Weight = Field(
        default=1.0, description="weight of the encoder's own loss, such as ACMIL's of its branches; 0 leaves it out"
    )
    hidden: Annotated[int, Field(ge=1, le=8192)] = Field(default=256, description="width H of a branch's hidden layer")
    dropout: Rate = Field(default=0.25, description="dropout on a branch's hidden layer, in training")


class PromptedOptions(EncodedOptions):
    """The options of the models with a single-modal branch."""

    prompt: Annotated[int, Field(ge=1, le=8192)] = Field(default=256, description="width P of the learned prompt")


@dataclass(frozen=True, slots=True)
class EncodedOutput(BagOutput):
    """What a model with a slide encoder says."""

    encoder: BagOutput | None = None
    """What the encoder says, with its own head."""


class GroupedModel(BagModel):
    """A bag model whose entries are grouped by what they are for."""

    def parameter_groups(self) -> dict[str, list[str]]:
        """Name the groups by what each entry of the state is for."""
        groups: dict[str, list[str]] = {}
        for name in self.state_dict():
            group = next(group for start, group in _GROUPS.items() if name.startswith(start))
            groups.setdefault(group, []).append(name)
        return groups


class EncodedModel(GroupedModel):
    """A bag model around a slide encoder.

    Args:
        encoder: a bag model that says its ``slide_width``.
        encoder_loss: weight of its own loss.
    """

    def __init__(self, encoder: BagModel, encoder_loss: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.encoder_loss = encoder_loss
        self.slide_width = encoder.slide_width

    def encoder_terms(self, output: BagOutput, target: int, class_weights_C: Tensor | None) -> list[Tensor]:
        """Return the encoder's own loss, weighted; nothing where it is switched off."""
        if not isinstance(output, EncodedOutput) or output.encoder is None:
            raise ValueError(f"the loss of {type(self).__name__} needs the output of its own forward")
        if not self.encoder_loss:
            return []
        return [self.encoder_loss * self.encoder.loss(output.encoder, target, class_weights_C)]


class MultimodalModel(GroupedModel):
    """A bag model that reads clinical records by what the federation agreed on."""

    agreed_groups = frozenset({"standard"})
    coder: ClinicalCoder

    def use_standard(self, standard: Standard) -> None:
        """Take over what the hospitals agreed on."""
        self.coder.use_standard(standard)

    def record_of(self, bag: Bag) -> ClinicalRecord | None:
        """Return the bag's clinical record where the model can use it.

        Some hospital must have trained on some, and the record must have a field that the hospitals agreed on.
        """
        record = bag.clinical
        return record if record is not None and self.coder.can_read(record) else None


class SingleBranch(nn.Module):
    """The single-modal branch: a learned prompt p stands where clinical data would.

    h_S = relu(W_S [relu(G h_w) ; p]), z_S = head(dropout(h_S))

    Args:
        slide_width: L.
        n_classes: C.
        options: its widths and dropout.
    """

    def __init__(self, slide_width: int, n_classes: int, options: PromptedOptions) -> None:
        super().__init__()
        self.guide = Hidden(slide_width, options.hidden)
        self.prompt = nn.Parameter(torch.randn(options.prompt) * options.prompt**-0.5)
        self.fusion = Hidden(options.hidden + options.prompt, options.hidden)
        self.dropout = nn.Dropout(options.dropout)
        self.head = nn.Linear(options.hidden, n_classes)

    def forward(self, slide_L: Tensor) -> tuple[Tensor, Tensor]:
        """Return the hidden layer (H) and the logits (C)."""
        hidden_H = self.fusion(torch.cat([self.guide(slide_L), self.prompt]))
        return hidden_H, self.head(self.dropout(hidden_H))


class MultiBranch(nn.Module):
    """The multi-modal branch: h_M = relu(W_M [h_w ; h_c]), z_M = head(dropout(h_M)), h_c = clinical(c).

    Args:
        slide_width: L.
        n_classes: C.
        n_entries: E.
        options: its width and dropout.
    """

    def __init__(self, slide_width: int, n_classes: int, n_entries: int, options: EncodedOptions) -> None:
        super().__init__()
        self.clinical = ClinicalEncoder(n_entries)
        self.fusion = Hidden(slide_width + CLINICAL_WIDTH, options.hidden)
        self.dropout = nn.Dropout(options.dropout)
        self.head = nn.Linear(options.hidden, n_classes)

    def forward(self, slide_L: Tensor, vector_E: Tensor) -> tuple[Tensor, Tensor]:
        """Return the hidden layer (H) and the logits (C)."""
        hidden_H = self.fusion(torch.cat([slide_L, self.clinical(vector_E)]))
        return hidden_H, self.head(self.dropout(hidden_H))


class ClinicalBranch(nn.Module):
    """Clinical data alone: z = head(dropout(clinical(c))).

    Args:
        n_classes: C.
        n_entries: E.
        dropout: rate.
    """

    def __init__(self, n_classes: int, n_entries: int, dropout: float) -> None:
        super().__init__()
        self.clinical = ClinicalEncoder(n_entries)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(CLINICAL_WIDTH, n_classes)

    def forward(self, vector_E: Tensor) -> tuple[Tensor, Tensor]:
        """Return the clinical encoding (M) and the logits (C)."""
        encoding_M = self.clinical(vector_E)
        return encoding_M, self.head(self.dropout(encoding_M))


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
