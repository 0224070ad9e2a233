"""Mean pooling: every patch counts the same. The floor that an attention model has to beat.

See ``fedpath.core.models.pooled`` for the formulas.
"""

from torch import Tensor

from fedpath.core.models.pooled import Pooled


class MeanPool(Pooled):
    """The slide vector is the mean over the instances; the attention is 1/N everywhere."""

    def pool(self, h_NL: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean (L) and the uniform attention (N)."""
        n_instances = h_NL.shape[0]
        return h_NL.mean(dim=0), h_NL.new_full((n_instances,), 1 / n_instances)
