"""Attention with 2-D ALiBi between neighbouring patches in blocks: exact, in linear time and memory, on any device.

    score(i, j) = q_i · k_j / sqrt(d) − slope_h · floor(distance(cell_i, cell_j))       out_i = Σ_j softmax_j(score) v_j

over the j within the radius. Neither scores nor probabilities are kept for the backward pass: it computes them again
from queries and keys, which costs one product in seven and saves what is hundreds of times larger than the features. A
chunk of blocks is one batched product for all heads, small enough to stay in the processor's cache, in buffers that are
used again for the next chunk. Dropout is drawn again in the backward pass from the seed of the forward pass.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedpath.core.models.memory import Scratch
from fedpath.core.models.spatial.layout import Chunk, WindowLayout
from fedpath.core.models.spatial.passes import Dropout, drawing, softmax_backward

_PAIRS = 2**17
"""Query-key pairs in a chunk of windows: 2 MB of scores with four heads in float32."""
_GPU_PAIRS = 2**22
"""The same on a GPU, which wants fewer and larger products."""


class LocalAttention(torch.autograd.Function):
    """Attention of each patch to the patches within the layout's radius; shapes as in ``local_attention``."""

    @staticmethod
    def forward(
        ctx: Any,
        q_HNd: Tensor,
        k_HNd: Tensor,
        v_HNd: Tensor,
        slopes_H: Tensor,
        layout: WindowLayout,
        dropout: Dropout | None,
    ) -> Tensor:
        """Return out (H, N, d)."""
        ctx.save_for_backward(q_HNd, k_HNd, v_HNd, slopes_H)
        ctx.layout, ctx.dropout = layout, dropout
        out_HNd, scratch = torch.zeros_like(q_HNd), Scratch(q_HNd.device, q_HNd.dtype)
        with drawing(dropout, q_HNd):
            for chunk in _windows(layout, q_HNd, k_HNd, slopes_H, scratch):
                p_BQK = chunk.probabilities_BQK
                if dropout is not None:
                    p_BQK.mul_(dropout.mask(p_BQK))
                v_BKd = chunk.gather(v_HNd, chunk.keys_X, scratch, "v")
                out_BQd = torch.bmm(p_BQK, v_BKd, out=scratch("out", chunk.q_BQd.shape))
                chunk.drop_repetitions(out_BQd)
                _rows(out_HNd).index_add_(0, chunk.queries_X, _rows(out_BQd))
        return out_HNd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_HNd: Tensor) -> Any:
        """Return the gradients of q, k and v."""
        q_HNd, k_HNd, v_HNd, slopes_H = ctx.saved_tensors
        dropout: Dropout | None = ctx.dropout
        grad_HNd = grad_HNd.contiguous()
        dq_HNd, dk_HNd, dv_HNd = (torch.zeros_like(tensor) for tensor in (q_HNd, k_HNd, v_HNd))
        scratch = Scratch(q_HNd.device, q_HNd.dtype)
        with drawing(dropout, q_HNd):
            for chunk in _windows(ctx.layout, q_HNd, k_HNd, slopes_H, scratch):
                p_BQK = chunk.probabilities_BQK
                mask_BQK = dropout.mask(p_BQK) if dropout is not None else None
                dout_BQd = chunk.gather(grad_HNd, chunk.queries_X, scratch, "dout")
                chunk.drop_repetitions(dout_BQd)
                v_BKd = chunk.gather(v_HNd, chunk.keys_X, scratch, "v")
                by_key_BKd = scratch("by_key", v_BKd.shape)
                ds_BQK = scratch("ds", p_BQK.shape)
                dropped_BQK = p_BQK if mask_BQK is None else torch.mul(p_BQK, mask_BQK, out=ds_BQK)
                torch.bmm(dropped_BQK.transpose(1, 2), dout_BQd, out=by_key_BKd)
                _rows(dv_HNd).index_add_(0, chunk.keys_X, _rows(by_key_BKd))
                torch.bmm(dout_BQd, v_BKd.transpose(1, 2), out=ds_BQK)
                if mask_BQK is not None:
                    ds_BQK.mul_(mask_BQK)
                softmax_backward(ds_BQK, p_BQK)
                by_query_BQd = torch.bmm(ds_BQK, chunk.k_BKd, out=scratch("out", dout_BQd.shape))
                _rows(dq_HNd).index_add_(0, chunk.queries_X, _rows(by_query_BQd))
                torch.bmm(ds_BQK.transpose(1, 2), chunk.q_BQd, out=by_key_BKd)
                _rows(dk_HNd).index_add_(0, chunk.keys_X, _rows(by_key_BKd))
        # q was scaled before the products, so dk holds the scale already.
        return dq_HNd.mul_(q_HNd.shape[2] ** -0.5), dk_HNd, dv_HNd, None, None, None


@dataclass(frozen=True, slots=True)
class _Windows:
    """One chunk of windows with its probabilities. B = heads · blocks, X = B · Q or B · K rows."""

    queries_X: Tensor
    keys_X: Tensor
    is_query_BQ1: Tensor | None
    q_BQd: Tensor
    """Scaled by 1 / sqrt(d)."""
    k_BKd: Tensor
    probabilities_BQK: Tensor

    def gather(self, source_HNd: Tensor, index_X: Tensor, scratch: Scratch, name: str) -> Tensor:
        """Return the rows ``index_X`` of all heads as one batch (B, Q or K, d)."""
        return _gather(source_HNd, index_X, len(self.q_BQd), scratch, name)

    def drop_repetitions(self, of_queries_BQd: Tensor) -> None:
        """Set the rows of queries that only fill up a block to zero."""
        if self.is_query_BQ1 is not None:
            of_queries_BQd.mul_(self.is_query_BQ1)


def _windows(
    layout: WindowLayout, q_HNd: Tensor, k_HNd: Tensor, slopes_H: Tensor, scratch: Scratch
) -> Iterator[_Windows]:
    """Yield the layout's chunks with their probabilities, always in the same order."""
    heads, n, d = q_HNd.shape
    first_row_H1 = n * torch.arange(heads, device=q_HNd.device)[:, None]
    cells_N2 = layout.cells_N2.to(q_HNd.device)
    for cpu_chunk in layout.chunks(_PAIRS if q_HNd.device.type == "cpu" else _GPU_PAIRS):
        chunk = cpu_chunk.to(q_HNd.device)
        (n_blocks, n_queries), n_keys = chunk.queries_TQ.shape, chunk.keys_TK.shape[1]
        n_batch = heads * n_blocks
        queries_X, keys_X = (
            (index.reshape(1, -1) + first_row_H1).flatten() for index in (chunk.queries_TQ, chunk.keys_TK)
        )
        q_BQd = _gather(q_HNd, queries_X, n_batch, scratch, "q").mul_(d**-0.5)
        k_BKd = _gather(k_HNd, keys_X, n_batch, scratch, "k")
        distance_TQK = _window_distances(cells_N2, chunk, layout.radius, scratch)
        scores_BQK = scratch("p", (n_batch, n_queries, n_keys))
        torch.mul(distance_TQK, -slopes_H[:, None, None, None], out=scores_BQK.view(heads, n_blocks, n_queries, n_keys))
        scores_BQK.baddbmm_(q_BQd, k_BKd.transpose(1, 2))
        torch.softmax(scores_BQK, 2, out=scores_BQK)
        is_query_BQ1 = None
        if not cpu_chunk.is_query_TQ.all():
            is_query_BQ1 = chunk.is_query_TQ.to(q_HNd.dtype).repeat(heads, 1)[:, :, None]
        yield _Windows(queries_X, keys_X, is_query_BQ1, q_BQd, k_BKd, scores_BQK)


def _window_distances(cells_N2: Tensor, chunk: Chunk, radius: int, scratch: Scratch) -> Tensor:
    """Return the truncated distances (T, Q, K), infinite where the key is out of reach or no key."""
    # Counted from each block's first query: a float32 holds no whole numbers beyond 2**24.
    origin_T12 = cells_N2[chunk.queries_TQ[:, :1]]
    shape = (*chunk.queries_TQ.shape, chunk.keys_TK.shape[1])
    squared_TQK, dy_TQK = scratch("distance", shape), scratch("dy", shape)
    (x_TQ, y_TQ), (x_TK, y_TK) = (
        (cells_N2[index] - origin_T12).to(squared_TQK.dtype).unbind(dim=2)
        for index in (chunk.queries_TQ, chunk.keys_TK)
    )
    torch.sub(x_TK[:, None, :], x_TQ[:, :, None], out=squared_TQK).square_()
    torch.sub(y_TK[:, None, :], y_TQ[:, :, None], out=dy_TQK)
    squared_TQK.addcmul_(dy_TQK, dy_TQK)
    is_far_TQK = torch.gt(squared_TQK, radius**2, out=scratch("is_far", shape, torch.bool))
    if not chunk.is_key_TK.all():
        is_far_TQK.logical_or_(~chunk.is_key_TK[:, None, :])
    return squared_TQK.sqrt_().floor_().masked_fill_(is_far_TQK, math.inf)


def _rows(tensor: Tensor) -> Tensor:
    """Return a contiguous tensor (…, d) as rows (X, d)."""
    return tensor.view(-1, tensor.shape[-1])


def _gather(source_HNd: Tensor, index_X: Tensor, n_batch: int, scratch: Scratch, name: str) -> Tensor:
    d = source_HNd.shape[2]
    rows_Xd = torch.index_select(_rows(source_HNd), 0, index_X, out=scratch(name, (len(index_X), d)))
    return rows_Xd.view(n_batch, -1, d)
