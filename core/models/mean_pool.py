"""Mean pooling: every patch counts the same. The floor that an attention model has to beat.

See ``fedpath.core.models.pooled`` for the formulas.
"""

from torch import Tensor

from fedpath.core.models.gated_pool import Hidden, attention_pool
from fedpath.core.models.pooled import Pooled


class MeanPool(Pooled):
    """The slide vector is the mean over the instances; the attention is 1/N everywhere."""

    def pool(self, x_ND: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
        """Return the mean (L) and the uniform attention (N)."""
        # Attention pooling in which all scores are 0.
        hidden = Hidden(self.reduce.weight, self.reduce.bias, dropout)
        no_scores_1L = self.reduce.bias.new_zeros(1, len(self.reduce.bias))
        pooled_1L, attention_1N = attention_pool(x_ND, hidden, None, no_scores_1L)
        return pooled_1L[0], attention_1N[0]
