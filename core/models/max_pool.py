"""Max pooling: each coordinate of the slide vector comes from the one patch that has most of it.

See ``fedpath.core.models.pooled`` for the formulas. Only the patches that hold a maximum get a gradient, at most L of
them. So the bag is walked through without one, a chunk at a time, to find them, and only their values are computed
again with one. Nothing of size N × L is kept, and there is no backward pass over N.
"""

import torch
from torch import Tensor

from fedpath.core.models.dropout import drop_, kept_share
from fedpath.core.models.pooled import Pooled
from fedpath.core.models.rows import row_chunks


class MaxPool(Pooled):
    """The slide vector is the elementwise maximum over the instances.

    There is no attention to report; in its place stands the share of the L coordinates whose maximum an instance
    holds. Among equal maxima the first instance holds it, and receives the gradient. A coordinate that is 0 in every
    instance says nothing of any: it counts 1/N for each. No gradient flows through these shares.
    """

    def pool(self, x_ND: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
        """Return the maxima (L) and each instance's share of them (N)."""
        weight_LD = self.reduce.weight
        n_instances, inner = x_ND.shape[0], weight_LD.shape[0]
        holder_L, held_L = self._holders(x_ND.detach(), dropout)
        values_L = (x_ND[holder_L].to(weight_LD.dtype) * weight_LD).sum(dim=1) + self.reduce.bias
        # A maximum is never a dropped value, nor one that relu stops.
        slide_L = torch.where(held_L, values_L / kept_share(dropout), 0)
        counts_N = torch.bincount(holder_L[held_L], minlength=n_instances).to(slide_L)
        return slide_L, (counts_N + (inner - counts_N.sum()) / n_instances) / inner

    @torch.no_grad()
    def _holders(self, x_ND: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
        """Return for each of L coordinates the instance that holds its maximum, and whether any is above 0."""
        weight_LD = self.reduce.weight
        best_L = weight_LD.new_zeros(weight_LD.shape[0])
        holder_L = torch.zeros_like(best_L, dtype=torch.int64)
        for rows, x_nD in row_chunks(x_ND, weight_LD.dtype):
            h_nL = self.reduce(x_nD)
            if dropout:
                drop_(h_nL, dropout)
            top_L, index_L = h_nL.max(dim=0)
            holder_L = torch.where(top_L > best_L, rows.start + index_L, holder_L)
            best_L = torch.maximum(top_L, best_L)
        return holder_L, best_L != 0  # of a model that has left the finite numbers too
