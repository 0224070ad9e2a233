"""What the two plainest baselines share: one hidden layer, a pooling without parameters, one head.

    h_NL   = dropout(relu(x_ND W + b))
    slide  = pool of h over the N instances, coordinate by coordinate
    logits = head(slide)

The papers that list these baselines leave the hidden layer open; ours has the dropout of CLAM's. The loss is the
cross-entropy.
"""

from abc import abstractmethod
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from fedpath.core.bags.bag import Bag
from fedpath.core.models.inputs import BagModelOptions, input_norm, paired_inner
from fedpath.core.models.protocol import BagModel, BagOutput


class PooledOptions(BagModelOptions):
    """Options of ``mean-pool`` and ``max-pool``."""

    inner: Annotated[int, Field(ge=1, le=8192)] | None = Field(
        default=None, description="inner width L; by default ACMIL's pair for the feature width, else half of it"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.25, description="dropout on the inner features, in training"
    )


class Pooled(BagModel):
    """A hidden layer, ``pool``, a head; see the module's docstring for the formulas.

    Args:
        width: feature width D.
        n_classes: C.
        options: see ``PooledOptions``.
    """

    def __init__(self, width: int, n_classes: int, options: PooledOptions) -> None:
        super().__init__()
        self.options = options
        self.slide_width = inner = options.inner or paired_inner(width)
        self.input_norm = input_norm(options.input_norm, width)
        self.reduce = nn.Linear(width, inner)
        self.slide_head = nn.Linear(inner, n_classes)

    @abstractmethod
    def pool(self, x_ND: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
        """Return the slide vector (L) and the attention of each instance (N).

        Args:
            x_ND: features of any float type on the model's device.
            dropout: rate on h; 0 outside training.
        """

    def forward(self, bag: Bag) -> BagOutput:
        """Classify one bag; in training mode with dropout, drawn from torch's global generator."""
        x_ND = self.input_norm(bag.features_ND.to(self.reduce.weight.device))
        slide_L, attention_N = self.pool(x_ND, self.options.dropout if self.training else 0.0)
        return BagOutput(self.slide_head(slide_L), attention_N[None], slide_L)
