"""ABMIL, attention-based multiple instance learning, in its gated form.

Ilse et al., "Attention-based Deep Multiple Instance Learning", ICML 2018.

    h_NL   = dropout(relu(x_ND W + b))
    a_N    = softmax over N of w · (tanh(h V) ⊙ sigmoid(h U))      eq. 9 of the paper, with biases
    slide  = a h
    logits = head(slide)

The loss is the cross-entropy.
"""

from typing import Annotated

from pydantic import Field
from torch import nn

from fedpath.core.bags.bag import Bag
from fedpath.core.models.gated_pool import Gate, Hidden, attention_pool
from fedpath.core.models.inputs import BagModelOptions, input_norm, paired_inner
from fedpath.core.models.protocol import BagModel, BagOutput


class AbmilOptions(BagModelOptions):
    """Options of ``abmil``."""

    inner: Annotated[int, Field(ge=1, le=8192)] | None = Field(
        default=None, description="inner width L; by default ACMIL's pair for the feature width, else half of it"
    )
    attention: Annotated[int, Field(ge=1, le=8192)] = Field(default=128, description="width inside the gated attention")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.25, description="dropout on the inner features, in training"
    )


class Abmil(BagModel):
    """ABMIL with gated attention; see the module's docstring for the formulas.

    Args:
        width: feature width D.
        n_classes: C.
        options: see ``AbmilOptions``.
    """

    def __init__(self, width: int, n_classes: int, options: AbmilOptions) -> None:
        super().__init__()
        self.options = options
        self.slide_width = inner = options.inner or paired_inner(width)
        self.input_norm = input_norm(options.input_norm, width)
        self.reduce = nn.Linear(width, inner)
        # tanh half and sigmoid half of the gate in one matrix: one product instead of two.
        self.gate = nn.Linear(inner, 2 * options.attention)
        self.score = nn.Linear(options.attention, 1)
        self.slide_head = nn.Linear(inner, n_classes)

    def forward(self, bag: Bag) -> BagOutput:
        """Classify one bag; in training mode with dropout, drawn from torch's global generator."""
        slide_1L, attention_1N = attention_pool(
            self.input_norm(bag.features_ND.to(self.reduce.weight.device)),
            Hidden(self.reduce.weight, self.reduce.bias, self.options.dropout if self.training else 0.0),
            Gate(self.gate.weight, self.gate.bias),
            self.score.weight,
            self.score.bias,
        )
        return BagOutput(self.slide_head(slide_1L[0]), attention_1N, slide_1L[0])
