"""Max pooling: each coordinate of the slide vector comes from the one patch that has most of it.

See ``fedpath.core.models.pooled`` for the formulas.
"""

import torch
from torch import Tensor

from fedpath.core.models.pooled import Pooled


class MaxPool(Pooled):
    """The slide vector is the elementwise maximum over the instances.

    There is no attention to report; in its place stands the share of the L coordinates whose maximum an instance
    holds. Among equal maxima the first instance holds it, and receives the gradient. A coordinate that is 0 in every
    instance says nothing of any: it counts 1/N for each. No gradient flows through these shares.
    """

    def pool(self, h_NL: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maxima (L) and each instance's share of them (N)."""
        n_instances, inner = h_NL.shape
        slide_L, holder_L = h_NL.max(dim=0)
        held_N = torch.bincount(holder_L[slide_L > 0], minlength=n_instances).to(h_NL)
        return slide_L, (held_N + (inner - held_N.sum()) / n_instances) / inner
