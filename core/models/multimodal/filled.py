"""The filling baselines: one fused branch for all patients, with something in the place of what is missing.

    h = relu(W [h_w ; clinical encoder(c)])             z = head(dropout(h))
    L = CE(z) + the encoder's own loss

| model | what a missing field, or a whole missing table, is |
|---|---|
| fill-zero | 0 in all its entries |
| fill-mean | the mean over the training patients who have it: 0 for a standardised number, of each word its share |
| fill-autoencoder | what a decoder reconstructs from the slide: d(sg h_w), d an MLP L → H → E |

The decoder learns from the patients who have clinical data, by the mean squared error over the entries of the fields
that they have; sg is "no gradient through this": the encoder does not learn for it, nor the decoder for the classes.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from fedpath.core.bags.bag import Bag
from fedpath.core.config.clinical import ClinicalSchema
from fedpath.core.models.multimodal.coder import ClinicalCoder
from fedpath.core.models.multimodal.parts import (
    EncodedModel,
    EncodedOptions,
    EncodedOutput,
    MultiBranch,
    MultimodalModel,
)
from fedpath.core.models.protocol import BagModel, BagOutput, weighted_cross_entropy


class FillOptions(EncodedOptions):
    """Options of ``fill-zero`` and ``fill-mean``."""


class FillAutoencoderOptions(FillOptions):
    """Options of ``fill-autoencoder``."""

    decoder_loss: Annotated[float, Field(gt=0, le=1000)] = Field(
        default=1.0, description="weight of the decoder's squared error"
    )


@dataclass(frozen=True, slots=True)
class FilledOutput(EncodedOutput):
    """What the fused branch says, and what stood in for missing clinical data."""

    fill_E: Tensor | None = None
    vector_E: Tensor | None = None
    """What the clinical encoder read."""
    known_E: Tensor | None = None
    """Which of its entries are the patient's own; None for a patient without clinical data."""


class Filled(EncodedModel, MultimodalModel):
    """One fused branch; what fills it is the subclass's. See the module's docstring for the formulas.

    Args:
        encoder: the slide's encoder.
        n_classes: C.
        options: see ``FillOptions``.
        schema: the federation's clinical fields.
    """

    def __init__(self, encoder: BagModel, n_classes: int, options: FillOptions, schema: ClinicalSchema) -> None:
        super().__init__(encoder, options.encoder_loss)
        self.coder = ClinicalCoder(schema)
        self.multi = MultiBranch(self.slide_width, n_classes, self.coder.layout.n_entries, options)

    @abstractmethod
    def fill(self, slide_L: Tensor) -> Tensor:
        """Return what the entries (E) are that nobody knows of this patient."""

    def forward(self, bag: Bag) -> FilledOutput:
        """Classify one bag; in training mode with dropout, from torch's global generator."""
        encoded = self.encoder(bag)
        slide_L = encoded.slide_vector_L
        record, fill_E = self.record_of(bag), self.fill(slide_L)
        vector_E = fill_E.detach() if record is None else self.coder(record, fill_E.detach())
        _, logits_C = self.multi(slide_L, vector_E)
        return FilledOutput(
            logits_C=logits_C,
            attention_KN=encoded.attention_KN,
            slide_vector_L=slide_L,
            route="single-modal" if record is None else "multi-modal",
            encoder=encoded,
            fill_E=fill_E,
            vector_E=vector_E,
            known_E=None if record is None else self.coder.known(record),
        )

    def loss(self, output: BagOutput, target: int, class_weights_C: Tensor | None = None) -> Tensor:
        """Return the branch's cross-entropy + the encoder's own loss."""
        loss = weighted_cross_entropy(output.logits_C[None], target, class_weights_C)
        return sum(self.encoder_terms(output, target, class_weights_C), loss)


class FillZero(Filled):
    """What is missing is 0."""

    def fill(self, slide_L: Tensor) -> Tensor:
        """Return zeros (E)."""
        return torch.zeros_like(self.coder.typical_E)


class FillMean(Filled):
    """What is missing is as it is on the mean."""

    def fill(self, slide_L: Tensor) -> Tensor:
        """Return the mean patient's vector (E)."""
        return self.coder.typical_E


class FillAutoencoder(Filled):
    """What is missing is reconstructed from the slide."""

    clinical_groups = frozenset({"decoder"})

    def __init__(
        self,
        encoder: BagModel,
        n_classes: int,
        options: FillAutoencoderOptions,
        schema: ClinicalSchema,
    ) -> None:
        super().__init__(encoder, n_classes, options, schema)
        self.decoder_loss = options.decoder_loss
        n_entries = self.coder.layout.n_entries
        self.decoder = nn.Sequential(
            nn.Linear(self.slide_width, options.hidden), nn.ReLU(), nn.Linear(options.hidden, n_entries)
        )

    def fill(self, slide_L: Tensor) -> Tensor:
        """Return the reconstruction (E); no gradient reaches the slide's encoder."""
        fill_E: Tensor = self.decoder(slide_L.detach())
        return fill_E

    def loss(self, output: BagOutput, target: int, class_weights_C: Tensor | None = None) -> Tensor:
        """Return the branch's cross-entropy + the encoder's own loss + the decoder's error where it is known."""
        loss = super().loss(output, target, class_weights_C)
        if not isinstance(output, FilledOutput) or output.known_E is None:
            return loss
        assert output.fill_E is not None
        assert output.vector_E is not None
        error_E = (output.fill_E - output.vector_E) * output.known_E
        return loss + self.decoder_loss * error_E.square().sum() / output.known_E.sum()
