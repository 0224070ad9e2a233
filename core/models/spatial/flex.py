"""The same attention on a GPU, by FlexAttention: one fused kernel that skips blocks of patches out of reach.

FlexAttention has no backward pass on a CPU and no dropout anywhere; ``local`` and ``everywhere`` serve both. Uncompiled
it forms all N × N scores: good enough to compare the two on small bags, never used for training.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from fedpath.core.models.spatial.layout import WindowLayout

_BLOCK = 128
"""Queries and keys of a block of the kernel's grid."""


def local_attention(q_HNd: Tensor, k_HNd: Tensor, v_HNd: Tensor, slopes_H: Tensor, layout: WindowLayout) -> Tensor:
    """Return what ``local.LocalAttention`` does, without dropout."""
    # Patches in the order of their tiles: a block of 128 neighbours in it is compact on the slide.
    order_N = torch.from_numpy(layout.tile_order_N).to(q_HNd.device)
    cells_N2 = layout.cells_N2.to(q_HNd.device)[order_N]
    x_N, y_N = cells_N2.unbind(dim=1)
    limit = layout.radius**2

    def squared(i: Tensor, j: Tensor) -> Tensor:
        dx, dy = x_N[i] - x_N[j], y_N[i] - y_N[j]
        return dx * dx + dy * dy

    def add_bias(score: Tensor, _b: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score - slopes_H[head] * _truncated(squared(i, j))

    def in_reach(_b: Tensor, _h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return squared(i, j) <= limit

    block_mask = _reachable_blocks(cells_N2, layout.radius, in_reach)
    ordered = (tensor[None, :, order_N] for tensor in (q_HNd, k_HNd, v_HNd))
    out_HNd: Tensor = _kernel(q_HNd.device.type)(*ordered, score_mod=add_bias, block_mask=block_mask)[0]
    return out_HNd[:, torch.argsort(order_N)]


def global_attention(
    q_HNd: Tensor,
    k_HMd: Tensor,
    v_HMd: Tensor,
    slopes_H: Tensor,
    query_cells_N2: Tensor,
    key_cells_M2: Tensor,
    far: int,
    log_counts_M: Tensor | None,
) -> Tensor:
    """Return what ``everywhere.GlobalAttention`` does, without dropout."""
    query_N2, key_M2 = query_cells_N2.to(q_HNd.device), key_cells_M2.to(q_HNd.device)
    extra_M = torch.zeros(len(key_M2)) if log_counts_M is None else log_counts_M
    extra_M = extra_M.to(q_HNd)

    def add_bias(score: Tensor, _b: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        dx, dy = query_N2[i, 0] - key_M2[j, 0], query_N2[i, 1] - key_M2[j, 1]
        return score - slopes_H[head] * torch.clamp(_truncated(dx * dx + dy * dy), max=far) + extra_M[j]

    out: Tensor = _kernel(q_HNd.device.type)(q_HNd[None], k_HMd[None], v_HMd[None], score_mod=add_bias)[0]
    return out


def _truncated(squared: Tensor) -> Tensor:
    """Return ``floor(sqrt(squared))`` of whole numbers; half of one makes it safe from a GPU's approximate root."""
    return torch.floor(torch.sqrt(squared + 0.5))


@cache
def _kernel(device_type: str) -> Any:
    """Return FlexAttention, compiled where it has kernels."""
    return torch.compile(flex_attention, dynamic=True) if device_type == "cuda" else flex_attention


def _reachable_blocks(cells_N2: Tensor, radius: int, in_reach: Any) -> BlockMask:
    """Return the pairs of blocks whose rectangles come within the radius of each other.

    From the rectangles of the blocks: torch's own ``create_block_mask`` asks every pair of patches.
    """
    n = len(cells_N2)
    n_blocks = -(-n // _BLOCK)
    padded_N2 = torch.cat([cells_N2, cells_N2[-1:].expand(n_blocks * _BLOCK - n, 2)]).view(n_blocks, _BLOCK, 2)
    low_G2, high_G2 = padded_N2.amin(dim=1), padded_N2.amax(dim=1)
    gap_GG2 = torch.maximum(low_G2[:, None] - high_G2[None], low_G2[None] - high_G2[:, None]).clamp(min=0)
    is_near_GG = gap_GG2.square().sum(dim=2) <= radius**2
    counts_G = is_near_GG.sum(dim=1, dtype=torch.int32)
    # Near blocks first; what follows them is not read.
    indices_GG = torch.argsort(~is_near_GG, dim=1, stable=True).to(torch.int32)
    return BlockMask.from_kv_blocks(
        counts_G[None, None], indices_GG[None, None], BLOCK_SIZE=_BLOCK, mask_mod=in_reach, seq_lengths=(n, n)
    )
