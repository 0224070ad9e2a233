"""Attention between the patches of a slide, near and far: one call, the fastest exact way there is on the device.

On a CPU, batched products over blocks of neighbouring patches (``local``, ``everywhere``); on a GPU FlexAttention
(``flex``), except where dropout or the attention each patch receives is asked for, which it cannot give.
"""

import torch
from torch import Tensor

from fedpath.core.models.spatial import flex
from fedpath.core.models.spatial.everywhere import DistanceBias, GlobalAttention
from fedpath.core.models.spatial.layout import WindowLayout
from fedpath.core.models.spatial.local import LocalAttention
from fedpath.core.models.spatial.passes import Dropout


def alibi_slopes(heads: int) -> Tensor:
    """Return the slope of each head (H), ``2 ** (-8 h / H)`` for h = 1 … H (Press et al., ICLR 2022)."""
    return 2.0 ** (-8.0 * torch.arange(1, heads + 1, dtype=torch.float64) / heads)


def local_attention(
    q_HNd: Tensor, k_HNd: Tensor, v_HNd: Tensor, layout: WindowLayout, slopes_H: Tensor, *, dropout: float = 0.0
) -> Tensor:
    """Attend to the patches within ``layout.radius`` cells, each patch itself included; time and memory O(N).

    Args:
        q_HNd: queries of H heads; keys and values alike. Half precision is computed in float32.
        k_HNd: keys.
        v_HNd: values.
        layout: where the patches lie.
        slopes_H: what a cell of distance costs in each head.
        dropout: share of the attention probabilities dropped, from torch's global generator.

    Returns:
        (H, N, d): ``softmax_j(q_i · k_j / sqrt(d) − slope · floor(|cell_i − cell_j|)) v_j``, in the type of q.

    Raises:
        ValueError: the shapes do not fit together.
    """
    shapes = [tensor.shape for tensor in (q_HNd, k_HNd, v_HNd)]
    if shapes != 3 * [(len(slopes_H), len(layout), q_HNd.shape[-1])]:
        raise ValueError(f"{shapes} of q, k and v do not fit {len(slopes_H)} heads and {len(layout)} patches")
    if dropout == 0 and flex.has_kernel(q_HNd):
        return flex.local_attention(q_HNd, k_HNd, v_HNd, slopes_H, layout)
    q, k, v = _prepared(q_HNd, k_HNd, v_HNd)
    out_HNd: Tensor = LocalAttention.apply(q, k, v, slopes_H.to(q), layout, _dropout(dropout))  # type: ignore[no-untyped-call]
    return out_HNd.to(q_HNd.dtype)


def global_attention(
    q_HNd: Tensor,
    k_HMd: Tensor,
    v_HMd: Tensor,
    query_cells_N2: Tensor,
    key_cells_M2: Tensor,
    slopes_H: Tensor,
    *,
    far: int,
    log_counts_M: Tensor | None = None,
    dropout: float = 0.0,
    received_HM: Tensor | None = None,
) -> Tensor:
    """Attend to all keys; time O(N · M), memory O(N + M).

    Args:
        q_HNd: queries of H heads. Half precision is computed in float32.
        k_HMd: keys: of the patches, or of what stands for several of them.
        v_HMd: values.
        query_cells_N2: cell of each query. In float32, distances are exact as long as cells stay below 2**24.
        key_cells_M2: cell of each key.
        slopes_H: what a cell of distance costs in each head.
        far: distances beyond this many cells count as this; at most 4096, whose square is still exact in float32.
        log_counts_M: added to the scores of each key.
        dropout: share of the attention probabilities dropped, from torch's global generator.
        received_HM: when given, the sum over the queries of each key's probability is added to it.

    Returns:
        (H, N, d), in the type of q.

    Raises:
        ValueError: the shapes do not fit together.
    """
    shapes = [tensor.shape for tensor in (q_HNd, k_HMd, v_HMd)]
    heads, n, m = len(slopes_H), len(query_cells_N2), len(key_cells_M2)
    if shapes != [(heads, rows, q_HNd.shape[-1]) for rows in (n, m, m)]:
        raise ValueError(f"{shapes} of q, k and v do not fit {heads} heads, {n} queries and {m} keys")
    if dropout == 0 and received_HM is None and flex.has_kernel(q_HNd):
        k, v = k_HMd.to(q_HNd.dtype), v_HMd.to(q_HNd.dtype)
        return flex.global_attention(q_HNd, k, v, slopes_H, query_cells_N2, key_cells_M2, far, log_counts_M)
    q, k, v = _prepared(q_HNd, k_HMd, v_HMd)
    bias = DistanceBias(query_cells_N2, key_cells_M2, far, None if log_counts_M is None else log_counts_M.to(q))
    out_HNd: Tensor = GlobalAttention.apply(q, k, v, slopes_H.to(q), bias, _dropout(dropout), received_HM)  # type: ignore[no-untyped-call]
    return out_HNd.to(q_HNd.dtype)


def _prepared(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors contiguous and in float32 at least."""
    return tuple(
        t.float().contiguous() if t.dtype in (torch.float16, torch.bfloat16) else t.contiguous() for t in tensors
    )


def _dropout(rate: float) -> Dropout | None:
    """Draw the seed of a pass from torch's global generator, and nothing when there is no dropout."""
    return Dropout(rate, int(torch.randint(2**62, ()))) if rate > 0 else None
