"""Ensemble: an image model and a clinical model that share no parameter.

image model     image-only: a slide encoder and BD's single-modal branch, σ(z_S)
clinical model  an MLP on the table, σ(z_C)
p = (σ(z_S) + σ(z_C)) / 2, or σ(z_S) for a patient without clinical data
L = CE(z_S) + CE(z_C) + the encoder's own loss; each learns as if it were alone
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpath.core.bags.bag import Bag
from fedpath.core.config.clinical import ClinicalSchema
from fedpath.core.models.multimodal.coder import ClinicalCoder
from fedpath.core.models.multimodal.parts import (
    ClinicalBranch,
    EncodedModel,
    EncodedOutput,
    MultimodalModel,
    PromptedOptions,
    SingleBranch,
)
from fedpath.core.models.protocol import BagModel, BagOutput, weighted_cross_entropy


class EnsembleOptions(PromptedOptions):
    """Options of ``ensemble``."""


@dataclass(frozen=True, slots=True)
class EnsembleOutput(EncodedOutput):
    """What both models say; the clinical one is None for a patient without clinical data."""

    image_logits_C: Tensor | None = None
    clinical_logits_C: Tensor | None = None


class Ensemble(EncodedModel, MultimodalModel):
    """Two models whose probabilities are averaged; ``logits_C`` are the logarithms of the mean.

    Args:
        encoder: the slide's encoder.
        n_classes: C.
        options: see ``EnsembleOptions``; the dropout is that of both models.
        schema: the federation's clinical fields.
    """

    clinical_groups = frozenset({"clinical", "multi_head"})

    def __init__(self, encoder: BagModel, n_classes: int, options: EnsembleOptions, schema: ClinicalSchema) -> None:
        super().__init__(encoder, options.encoder_loss)
        self.single = SingleBranch(self.slide_width, n_classes, options)
        self.coder = ClinicalCoder(schema)
        self.multi = ClinicalBranch(n_classes, self.coder.layout.n_entries, options.dropout)

    def forward(self, bag: Bag) -> EnsembleOutput:
        """Classify one bag; in training mode with dropout, from torch's global generator."""
        encoded = self.encoder(bag)
        _, image_C = self.single(encoded.slide_vector_L)
        logits_C, clinical_C, record = image_C, None, self.record_of(bag)
        if record is not None:
            _, clinical_C = self.multi(self.coder(record))
            exact = torch.promote_types(image_C.dtype, torch.float32)
            logs_2C = torch.stack([image_C, clinical_C]).to(exact).log_softmax(dim=1)
            logits_C = logs_2C.logsumexp(dim=0) - math.log(2)
        return EnsembleOutput(
            logits_C=logits_C,
            attention_KN=encoded.attention_KN,
            slide_vector_L=encoded.slide_vector_L,
            route="single-modal" if record is None else "multi-modal",
            encoder=encoded,
            image_logits_C=image_C,
            clinical_logits_C=clinical_C,
        )

    def loss(self, output: BagOutput, target: int, class_weights_C: Tensor | None = None) -> Tensor:
        """Return the cross-entropies of both models + the encoder's own loss."""
        if not isinstance(output, EnsembleOutput) or output.image_logits_C is None:
            raise ValueError("the loss of the ensemble needs the output of its own forward")
        loss = weighted_cross_entropy(output.image_logits_C[None], target, class_weights_C)
        loss = sum(self.encoder_terms(output, target, class_weights_C), loss)
        if output.clinical_logits_C is not None:
            loss = loss + weighted_cross_entropy(output.clinical_logits_C[None], target, class_weights_C)
        return loss
