"""Image only: BD's single-modal branch on its own.

    L = CE(z_S) + the encoder's own loss

Where nobody has clinical data, ``bd`` is this model: from the same seed both train to the same numbers.
"""

from torch import Tensor

from fedpath.core.bags.bag import Bag
from fedpath.core.models.multimodal.parts import EncodedModel, EncodedOutput, PromptedOptions, SingleBranch
from fedpath.core.models.protocol import BagModel, BagOutput, weighted_cross_entropy


class ImageOnlyOptions(PromptedOptions):
    """Options of ``image-only``."""


class ImageOnly(EncodedModel):
    """A slide encoder and BD's single-modal branch; clinical data are not read.

    Args:
        encoder: the slide's encoder.
        n_classes: C.
        options: see ``ImageOnlyOptions``.
    """

    def __init__(self, encoder: BagModel, n_classes: int, options: ImageOnlyOptions) -> None:
        super().__init__(encoder, options.encoder_loss)
        self.single = SingleBranch(self.slide_width, n_classes, options)

    def forward(self, bag: Bag) -> EncodedOutput:
        """Classify one bag; in training mode with dropout, from torch's global generator."""
        encoded = self.encoder(bag)
        _, logits_C = self.single(encoded.slide_vector_L)
        return EncodedOutput(
            logits_C, encoded.attention_KN, encoded.slide_vector_L, route="single-modal", encoder=encoded
        )

    def loss(self, output: BagOutput, target: int, class_weights_C: Tensor | None = None) -> Tensor:
        """Return the branch's cross-entropy + the encoder's own loss."""
        loss = weighted_cross_entropy(output.logits_C[None], target, class_weights_C)
        return sum(self.encoder_terms(output, target, class_weights_C), loss)
