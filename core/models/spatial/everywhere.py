"""Attention with 2-D ALiBi to all patches, some queries at a time: exact, in linear memory, on any device.

    score(i, j) = q_i · k_j / sqrt(d) − slope_h · min(floor(distance(cell_i, cell_j)), far) + log count_j

As in ``local``, the backward pass computes the probabilities again instead of keeping N × M of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedpath.core.models.memory import Scratch
from fedpath.core.models.spatial.passes import Dropout, drawing, softmax_backward


@dataclass(frozen=True, slots=True)
class DistanceBias:
    """What the score of a query and a key gets from where they lie."""

    query_cells_N2: Tensor
    key_cells_M2: Tensor
    far: int
    """Distances beyond this count as this."""
    log_counts_M: Tensor | None = None
    """Added to a key's scores: the logarithm of how many patches it stands for."""


class GlobalAttention(torch.autograd.Function):
    """Attention of N queries to all of M keys, some queries at a time; shapes as in ``global_attention``."""

    @staticmethod
    def forward(
        ctx: Any,
        q_HNd: Tensor,
        k_HMd: Tensor,
        v_HMd: Tensor,
        slopes_H: Tensor,
        bias: DistanceBias,
        dropout: Dropout | None,
        received_HM: Tensor | None,
    ) -> Tensor:
        """Return out (H, N, d); add each key's summed probabilities to ``received_HM`` when it is given."""
        ctx.save_for_backward(q_HNd, k_HMd, v_HMd, slopes_H)
        ctx.bias, ctx.dropout = bias, dropout
        out_HNd = torch.empty_like(q_HNd)
        with drawing(dropout, q_HNd):
            for rows, head, _, p_QM in _strips(q_HNd, k_HMd, slopes_H, bias):
                if received_HM is not None:
                    received_HM[head] += p_QM.sum(dim=0)
                if dropout is not None:
                    p_QM.mul_(dropout.mask(p_QM))
                torch.mm(p_QM, v_HMd[head], out=out_HNd[head, rows])
        return out_HNd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_HNd: Tensor) -> Any:
        """Return the gradients of q, k and v."""
        q_HNd, k_HMd, v_HMd, slopes_H = ctx.saved_tensors
        dropout: Dropout | None = ctx.dropout
        grad_HNd = grad_HNd.contiguous()
        dq_HNd, dk_HMd, dv_HMd = torch.empty_like(q_HNd), torch.zeros_like(k_HMd), torch.zeros_like(v_HMd)
        scratch = Scratch(q_HNd.device, q_HNd.dtype)
        with drawing(dropout, q_HNd):
            for rows, head, q_Qd, p_QM in _strips(q_HNd, k_HMd, slopes_H, ctx.bias):
                mask_QM = dropout.mask(p_QM) if dropout is not None else None
                dout_Qd = grad_HNd[head, rows]
                ds_QM = scratch("ds", p_QM.shape)
                dropped_QM = p_QM if mask_QM is None else torch.mul(p_QM, mask_QM, out=ds_QM)
                dv_HMd[head].addmm_(dropped_QM.T, dout_Qd)
                torch.mm(dout_Qd, v_HMd[head].T, out=ds_QM)
                if mask_QM is not None:
                    ds_QM.mul_(mask_QM)
                softmax_backward(ds_QM, p_QM)
                torch.mm(ds_QM, k_HMd[head], out=dq_HNd[head, rows])
                dk_HMd[head].addmm_(ds_QM.T, q_Qd)
        return dq_HNd.mul_(q_HNd.shape[2] ** -0.5), dk_HMd, dv_HMd, None, None, None, None


def _strips(
    q_HNd: Tensor, k_HMd: Tensor, slopes_H: Tensor, bias: DistanceBias
) -> Iterator[tuple[slice, int, Tensor, Tensor]]:
    """Yield (rows, head, scaled queries (Q, d), probabilities (Q, M)) for strips of queries, head by head."""
    heads, n, d = q_HNd.shape
    m = k_HMd.shape[1]
    # Enough rows for efficient products, but not more scores than a few megabytes where that is possible.
    height = max(64, min(256, 2**22 // m))
    scratch = Scratch(q_HNd.device, q_HNd.dtype)
    query_N2, key_M2 = (
        cells.to(device=q_HNd.device, dtype=q_HNd.dtype) for cells in (bias.query_cells_N2, bias.key_cells_M2)
    )
    for start in range(0, n, height):
        rows = slice(start, min(start + height, n))
        n_rows = rows.stop - start
        distance_QM = torch.sub(
            key_M2[None, :, 0], query_N2[rows, 0, None], out=scratch("distance", (n_rows, m))
        ).square_()
        dy_QM = torch.sub(key_M2[None, :, 1], query_N2[rows, 1, None], out=scratch("p", (n_rows, m)))
        distance_QM.addcmul_(dy_QM, dy_QM).sqrt_().floor_().clamp_(max=bias.far)
        for head in range(heads):
            scores_QM = torch.mul(distance_QM, -slopes_H[head], out=scratch("p", (n_rows, m)))
            if bias.log_counts_M is not None:
                scores_QM += bias.log_counts_M
            q_Qd = torch.mul(q_HNd[head, rows], d**-0.5, out=scratch("q", (n_rows, d)))
            scores_QM.addmm_(q_Qd, k_HMd[head].T)
            yield rows, head, q_Qd, torch.softmax(scores_QM, 1, out=scores_QM)
