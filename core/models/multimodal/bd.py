"""BD, bidirectional distillation for missing clinical data, around any slide encoder.

BIBM 2023; the paper's code is not public, so widths and the prompt's place are ours.

    h_w  = the slide encoder's vector
    h_c  = clinical encoder(c), an MLP E → 64 → 256
    h_M  = relu(W_M [h_w ; h_c])              z_M = head_M(dropout(h_M))      multi-modal branch
    h_S  = relu(W_S [relu(G h_w) ; p])        z_S = head_S(dropout(h_S))      single-modal branch, p the learned prompt

    L = CE(z_M) + CE(z_S) + T² KL(sg σ(z_M/T) ‖ σ(z_S/T)) + λ/H ‖h_M − sg h_S‖²
        + the encoder's own loss

with sg for "no gradient through this". A patient without clinical data trains and is served by the single-modal branch
alone, ``CE(z_S)`` and the encoder's own loss: nothing is filled in.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from fedpath.core.bags.bag import Bag
from fedpath.core.config.clinical import ClinicalSchema
from fedpath.core.models.multimodal.coder import ClinicalCoder
from fedpath.core.models.multimodal.parts import (
    CLINICAL_WIDTH,
    ClinicalEncoder,
    Hidden,
    MultimodalModel,
    MultimodalOptions,
)
from fedpath.core.models.protocol import BagModel, BagOutput, weighted_cross_entropy

Weight = Annotated[float, Field(ge=0)]


class BdOptions(MultimodalOptions):
    """Options of ``bd``."""

    prompt: Annotated[int, Field(ge=1, le=8192)] = Field(default=256, description="width P of the learned prompt")
    single_loss: Weight = Field(default=1.0, description="weight of the single-modal branch's cross-entropy")
    multi_loss: Weight = Field(default=1.0, description="weight of the multi-modal branch's cross-entropy")
    to_single: Weight = Field(
        default=1.0, description="weight of the single-modal branch's learning from the other's classes"
    )
    to_multi: Weight = Field(
        default=1.0, description="λ, weight of the multi-modal branch's learning from the other's features"
    )
    temperature: Annotated[float, Field(gt=0)] = Field(default=2.0, description="T, softens both branches' classes")


@dataclass(frozen=True, slots=True)
class BdOutput(BagOutput):
    """What both branches say; the multi-modal one is None for a patient without clinical data."""

    encoder: BagOutput | None = None
    single_logits_C: Tensor | None = None
    single_hidden_H: Tensor | None = None
    multi_logits_C: Tensor | None = None
    multi_hidden_H: Tensor | None = None


class Bd(MultimodalModel):
    """BD; see the module's docstring for the formulas.

    Args:
        encoder: the slide's encoder.
        slide_width: L, width of its slide vector.
        n_classes: C.
        options: see ``BdOptions``.
        schema: the federation's clinical fields.
    """

    clinical_groups = frozenset({"clinical", "fusion", "multi_head"})

    def __init__(
        self, encoder: BagModel, slide_width: int, n_classes: int, options: BdOptions, schema: ClinicalSchema
    ) -> None:
        super().__init__()
        self.options = options
        self.encoder = encoder
        self.guide = Hidden(slide_width, options.hidden)
        self.prompt = nn.Parameter(torch.randn(options.prompt) * options.prompt**-0.5)
        self.single = Hidden(options.hidden + options.prompt, options.hidden)
        self.single_head = nn.Linear(options.hidden, n_classes)
        self.coder = ClinicalCoder(schema)
        self.clinical = ClinicalEncoder(self.coder.layout.n_entries)
        self.fusion = Hidden(slide_width + CLINICAL_WIDTH, options.hidden)
        self.multi_head = nn.Linear(options.hidden, n_classes)
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, bag: Bag) -> BdOutput:
        """Classify one bag by the branch that fits it."""
        encoded = self.encoder(bag)
        slide_L = encoded.slide_vector_L
        single_H = self.single(torch.cat([self.guide(slide_L), self.prompt]))
        single_C = self.single_head(self.dropout(single_H))
        multi_H = multi_C = None
        if (record := self.record_of(bag)) is not None:
            multi_H = self.fusion(torch.cat([slide_L, self.clinical(self.coder(record))]))
            multi_C = self.multi_head(self.dropout(multi_H))
        return BdOutput(
            logits_C=single_C if multi_C is None else multi_C,
            attention_KN=encoded.attention_KN,
            slide_vector_L=slide_L,
            route="single-modal" if multi_C is None else "multi-modal",
            encoder=encoded,
            single_logits_C=single_C,
            single_hidden_H=single_H,
            multi_logits_C=multi_C,
            multi_hidden_H=multi_H,
        )

    def loss(self, output: BagOutput, target: int, class_weights_C: Tensor | None = None) -> Tensor:
        """Return the training loss of one bag; class weights act on the cross-entropies and the encoder's own loss."""
        assert isinstance(output, BdOutput)
        assert output.encoder is not None
        assert output.single_logits_C is not None
        assert output.single_hidden_H is not None
        options = self.options
        loss = options.single_loss * weighted_cross_entropy(output.single_logits_C[None], target, class_weights_C)
        if options.encoder_loss:
            loss = loss + options.encoder_loss * self.encoder.loss(output.encoder, target, class_weights_C)
        if output.multi_logits_C is None or output.multi_hidden_H is None:
            return loss
        temperature = options.temperature
        taught_C = (output.single_logits_C / temperature).log_softmax(dim=0)
        teacher_C = (output.multi_logits_C.detach() / temperature).log_softmax(dim=0)
        to_single = temperature**2 * (teacher_C.exp() * (teacher_C - taught_C)).sum()
        to_multi = (output.multi_hidden_H - output.single_hidden_H.detach()).square().mean()
        multi = weighted_cross_entropy(output.multi_logits_C[None], target, class_weights_C)
        return loss + options.multi_loss * multi + options.to_single * to_single + options.to_multi * to_multi

    def group_of(self, part: str) -> str:
        """Return the group of one of the model's parts."""
        groups = {"encoder": "image", "guide": "single_head", "single": "single_head", "coder": "standard"}
        return groups.get(part, part)
