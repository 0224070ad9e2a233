"""Clinical only: what a table says without the slide.

    h = clinical encoder(c), an MLP E → 64 → 256        z = head(dropout(h))
    L = CE(z) + CE(b)

A patient without clinical data gets the learned prior logits b, which every patient trains: the classes' frequencies.
"""

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from fedpath.core.bags.bag import Bag
from fedpath.core.config.clinical import ClinicalSchema
from fedpath.core.config.loading import Section
from fedpath.core.models.multimodal.coder import ClinicalCoder
from fedpath.core.models.multimodal.parts import CLINICAL_WIDTH, ClinicalBranch, MultimodalModel, Rate
from fedpath.core.models.protocol import BagOutput, weighted_cross_entropy


class ClinicalOnlyOptions(Section):
    """Options of ``clinical-only``."""

    dropout: Rate = Field(default=0.25, description="dropout on the clinical encoding, in training")


@dataclass(frozen=True, slots=True)
class ClinicalOnlyOutput(BagOutput):
    """What the table says, and what is said without one."""

    prior_C: Tensor | None = None


class ClinicalOnly(MultimodalModel):
    """An MLP on the clinical data, prior logits for who has none; no patch is looked at.

    The attention is 1/N for every patch and the slide vector is the clinical encoding, 0 without clinical data.

    Args:
        n_classes: C.
        options: see ``ClinicalOnlyOptions``.
        schema: the federation's clinical fields.
    """

    clinical_groups = frozenset({"clinical", "multi_head"})

    def __init__(self, n_classes: int, options: ClinicalOnlyOptions, schema: ClinicalSchema) -> None:
        super().__init__()
        self.slide_width = CLINICAL_WIDTH
        self.prior = nn.Parameter(torch.zeros(n_classes))
        self.coder = ClinicalCoder(schema)
        self.multi = ClinicalBranch(n_classes, self.coder.layout.n_entries, options.dropout)

    def forward(self, bag: Bag) -> ClinicalOnlyOutput:
        """Classify one bag by its patient's table; in training mode with dropout, from torch's global generator."""
        record = self.record_of(bag)
        encoding_M, logits_C = self.prior.new_zeros(CLINICAL_WIDTH), self.prior
        if record is not None:
            encoding_M, logits_C = self.multi(self.coder(record))
        return ClinicalOnlyOutput(
            logits_C=logits_C,
            attention_KN=self.prior.new_full((1, len(bag)), 1 / len(bag)),
            slide_vector_L=encoding_M,
            route="single-modal" if record is None else "multi-modal",
            prior_C=self.prior,
        )

    def loss(self, output: BagOutput, target: int, class_weights_C: Tensor | None = None) -> Tensor:
        """Return the cross-entropy of the prior + that of the table, where there is one."""
        if not isinstance(output, ClinicalOnlyOutput) or output.prior_C is None:
            raise ValueError("the loss of clinical-only needs the output of its own forward")
        loss = weighted_cross_entropy(output.prior_C[None], target, class_weights_C)
        if output.route == "single-modal":
            return loss
        return loss + weighted_cross_entropy(output.logits_C[None], target, class_weights_C)
