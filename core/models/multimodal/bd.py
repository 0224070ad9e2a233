"""BD, bidirectional distillation for missing clinical data, around any slide encoder.

BIBM 2023; the paper's code is not public, so widths and the prompt's place are ours.

    h_w  = the slide encoder's vector
    h_c  = clinical encoder(c), an MLP E → 64 → 256
    h_S  = relu(W_S [relu(G h_w) ; p])        z_S = head_S(dropout(h_S))      single-modal branch, p the learned prompt
    h_M  = relu(W_M [h_w ; h_c])              z_M = head_M(dropout(h_M)) + κ sg z_S                multi-modal branch

    L = CE(z_S) + CE(z_M) + T² KL(sg σ(z_M/T) ‖ σ(z_S/T)) + λ/H ‖h_M − sg h_S‖²
        + the encoder's own loss

with sg for "no gradient through this". A patient without clinical data trains and is served by the single-modal branch
alone, ``CE(z_S)`` and the encoder's own loss: nothing is filled in.

The factor 1/H is ours: the plain sum over H numbers outweighs the cross-entropies and pulls the multi-modal branch onto
the single-modal one, until nothing of the clinical data is left in it.

κ is ours, too, 1 unless set and 0 in the paper: the multi-modal branch learns what the table adds to the class scores
that all patients taught, instead of reading the slide anew from the few with a table; both routes stay on one scale.

Every term has a weight, and one of weight 0 is not computed. Without its cross-entropy nothing teaches the multi-modal
head: then every patient is served by the single-modal branch.
"""

from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import Field, model_validator
from torch import Tensor

from fedpath.core.bags.bag import Bag
from fedpath.core.config.clinical import ClinicalSchema
from fedpath.core.models.multimodal.coder import ClinicalCoder
from fedpath.core.models.multimodal.parts import (
    EncodedModel,
    EncodedOutput,
    MultiBranch,
    MultimodalModel,
    PromptedOptions,
    SingleBranch,
    Weight,
)
from fedpath.core.models.protocol import BagModel, BagOutput, weighted_cross_entropy


class BdOptions(PromptedOptions):
    """Options of ``bd``."""

    single_loss: Weight = Field(default=1.0, description="weight of the single-modal branch's cross-entropy")
    multi_loss: Weight = Field(default=1.0, description="weight of the multi-modal branch's cross-entropy")
    to_single: Weight = Field(
        default=1.0, description="weight of the single-modal branch's learning from the other's classes"
    )
    to_multi: Weight = Field(
        default=1.0, description="λ, weight of the multi-modal branch's learning from the other's features"
    )
    single_in_multi: Weight = Field(
        default=1.0, description="κ, weight of the single-modal branch's class scores in those of the multi-modal one"
    )
    temperature: Annotated[float, Field(ge=0.01, le=100)] = Field(
        default=2.0, description="T, softens both branches' classes"
    )

    @model_validator(mode="after")
    def _everybody_learns(self) -> Self:
        if self.to_single and not self.multi_loss:
            raise ValueError(
                "with multi_loss = 0 nothing teaches the classes that to_single passes on: set it to 0 too"
            )
        if not self.single_loss and not self.to_single:
            raise ValueError(
                "with single_loss = 0 and to_single = 0 nothing teaches the single-modal branch, which serves the "
                "patients without clinical data: set one of them above 0"
            )
        if not self.single_loss and not self.encoder_loss:
            raise ValueError(
                "with single_loss = 0 and encoder_loss = 0 a patient without clinical data trains nothing: "
                "set one of them above 0"
            )
        return self


@dataclass(frozen=True, slots=True)
class BdOutput(EncodedOutput):
    """What both branches say; the multi-modal one is None for a patient without clinical data."""

    single_logits_C: Tensor | None = None
    single_hidden_H: Tensor | None = None
    multi_logits_C: Tensor | None = None
    multi_hidden_H: Tensor | None = None


class Bd(EncodedModel, MultimodalModel):
    """BD; see the module's docstring for the formulas.

    Args:
        encoder: the slide's encoder.
        n_classes: C.
        options: see ``BdOptions``.
        schema: the federation's clinical fields.
    """

    clinical_groups = frozenset({"clinical", "fusion", "multi_head"})

    def __init__(self, encoder: BagModel, n_classes: int, options: BdOptions, schema: ClinicalSchema) -> None:
        super().__init__(encoder, options.encoder_loss)
        self.options = options
        self.single = SingleBranch(self.slide_width, n_classes, options)
        self.coder = ClinicalCoder(schema)
        self.multi = MultiBranch(self.slide_width, n_classes, self.coder.layout.n_entries, options)
        self._without_record = frozenset({"image"})
        self._with_record = frozenset({"image", "prompt", "single_head"})
        if options.single_loss:
            self._without_record |= {"prompt", "single_head"}
        if options.multi_loss or options.to_multi:
            self._with_record |= {"clinical", "fusion"}
        if options.multi_loss:
            self._with_record |= {"multi_head"}

    def forward(self, bag: Bag) -> BdOutput:
        """Classify one bag by the branch that fits it; in training mode with dropout, from torch's global generator."""
        options = self.options
        encoded = self.encoder(bag)
        slide_L = encoded.slide_vector_L
        single_H, single_C = self.single(slide_L)
        multi_H = multi_C = None
        if (options.multi_loss or options.to_multi) and (record := self.record_of(bag)) is not None:
            multi_H, multi_C = self.multi(slide_L, self.coder(record))
            multi_C = multi_C + options.single_in_multi * single_C.detach()
        served = multi_C if options.multi_loss else None
        return BdOutput(
            logits_C=single_C if served is None else served,
            attention_KN=encoded.attention_KN,
            slide_vector_L=slide_L,
            route="single-modal" if served is None else "multi-modal",
            encoder=encoded,
            single_logits_C=single_C,
            single_hidden_H=single_H,
            multi_logits_C=multi_C,
            multi_hidden_H=multi_H,
        )

    def loss(self, output: BagOutput, target: int, class_weights_C: Tensor | None = None) -> Tensor:
        """Return the training loss of one bag; class weights act on the cross-entropies and the encoder's own loss."""
        if not isinstance(output, BdOutput) or output.single_logits_C is None or output.single_hidden_H is None:
            raise ValueError("the loss of BD needs the output of its own forward")
        options = self.options
        terms = []
        if options.single_loss:
            single = weighted_cross_entropy(output.single_logits_C[None], target, class_weights_C)
            terms.append(options.single_loss * single)
        terms += self.encoder_terms(output, target, class_weights_C)
        if output.multi_logits_C is not None and output.multi_hidden_H is not None:
            if options.multi_loss:
                multi = weighted_cross_entropy(output.multi_logits_C[None], target, class_weights_C)
                terms.append(options.multi_loss * multi)
            if options.to_single:
                taught = softened_divergence(
                    output.multi_logits_C.detach(), output.single_logits_C, options.temperature
                )
                terms.append(options.to_single * taught)
            if options.to_multi:
                apart = (output.multi_hidden_H - output.single_hidden_H.detach()).square().mean()
                terms.append(options.to_multi * apart)
        return sum(terms[1:], terms[0])

    def trained_groups(self, bag: Bag) -> frozenset[str]:
        """Return the groups that a training step on ``bag`` changes, with the terms that are switched on."""
        return self._without_record if self.record_of(bag) is None else self._with_record


def softened_divergence(teacher_C: Tensor, taught_C: Tensor, temperature: float) -> Tensor:
    """Return T² KL(σ(teacher/T) ‖ σ(taught/T)) of two vectors of logits."""
    wanted_C = (teacher_C / temperature).log_softmax(dim=0)
    given_C = (taught_C / temperature).log_softmax(dim=0)
    return temperature**2 * (wanted_C.exp() * (wanted_C - given_C)).sum()
