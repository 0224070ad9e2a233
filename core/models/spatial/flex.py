"""The same attention on a GPU, by FlexAttention: one fused kernel that skips blocks of patches out of reach.

FlexAttention has no backward pass on a CPU and no dropout anywhere; ``local`` and ``everywhere`` serve both. Uncompiled
it forms all N × N scores: good enough to compare the two on small bags, never used for training.

What keeps its kernels on paths that are known to work, whatever the slide:

- Patches are filled up to whole blocks of 128, with patches that no real one sees. With a mask, a bias and a length
  that is no multiple of 128, its backward pass gave NaN (pytorch issue 153799); lengths below 128 take another kernel.
- Heads are filled up with zeros to a width that is a power of two, at least 16: that is what the kernels compute with,
  and the widths whose tiles are known to fit a GPU's memory. Uncommon widths such as 96 get tiles that may not.
- What changes with the slide reaches the kernel in tensors, so that it is compiled once and not once a slide; and where
  torch would give up compiling and go on without, which takes N × N memory, it is an error.
"""

import os
from functools import cache
from importlib.util import find_spec
from shutil import which
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad

from fedpath.core.models.spatial.layout import WindowLayout

_BLOCK = 128
"""Queries and keys of a block of the kernel's grid."""
_WIDEST = 128
"""Widest head whose tiles fit every GPU from compute capability 8.0 on."""


def has_kernel(q_HNd: Tensor) -> bool:
    """Tell whether there is a kernel for these queries; else, blocks of neighbours serve any GPU and any type."""
    _, n, d = q_HNd.shape
    return (
        q_HNd.is_cuda
        and q_HNd.dtype != torch.float64
        and n > _BLOCK
        and d <= _WIDEST
        and torch.cuda.get_device_capability(q_HNd.device) >= (8, 0)
        and _compiles()
    )


@cache
def _compiles() -> bool:
    """Tell whether a kernel can be made here: Triton also calls a C compiler, which an image may do without."""
    return find_spec("triton") is not None and any(map(which, filter(None, (os.environ.get("CC"), "gcc", "clang"))))


def local_attention(q_HNd: Tensor, k_HNd: Tensor, v_HNd: Tensor, slopes_H: Tensor, layout: WindowLayout) -> Tensor:
    """Return what ``local.LocalAttention`` does, without dropout; half precision stays what it is."""
    n, device = len(layout), q_HNd.device
    # Patches in the order of their tiles: a block of 128 neighbours in it is compact on the slide.
    order_N = torch.from_numpy(layout.tile_order_N).to(device)
    order_P = torch.cat([order_N, order_N[-1:].expand(-n % _BLOCK)])
    cells_P2 = layout.cells_N2.to(device)[order_P]
    limit = torch.tensor(layout.radius**2, dtype=torch.float32, device=device)
    place_P2 = cells_P2.int()
    place_P2[n:] = -layout.radius - 1  # what only fills up the last block is out of everybody's reach
    x_P, y_P = place_P2.T.contiguous()
    slopes_H = _exact(slopes_H, q_HNd)

    def squared(i: Tensor, j: Tensor) -> Tensor:
        return _squared(x_P[i] - x_P[j], y_P[i] - y_P[j])

    def add_bias(score: Tensor, _b: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score - slopes_H[head] * _truncated(squared(i, j))

    def in_reach(_b: Tensor, _h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return squared(i, j) <= limit

    block_mask = _reachable_blocks(cells_P2, layout.radius, in_reach)
    ordered = [tensor[:, order_P] for tensor in (q_HNd, k_HNd, v_HNd)]
    out_HPd = _run(*ordered, score_mod=add_bias, block_mask=block_mask)
    return out_HPd[:, torch.argsort(order_N)]


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
    """Return what ``everywhere.GlobalAttention`` does, without dropout; half precision stays what it is."""
    device, (n, m) = q_HNd.device, (len(query_cells_N2), len(key_cells_M2))
    filled_n, filled_m = -n % _BLOCK, -m % _BLOCK
    query_x_P, query_y_P = pad(query_cells_N2.int(), (0, 0, 0, filled_n)).to(device).T.contiguous()
    key_x_P, key_y_P = pad(key_cells_M2.int(), (0, 0, 0, filled_m)).to(device).T.contiguous()
    counts_M = q_HNd.new_zeros(m) if log_counts_M is None else log_counts_M.to(device)
    # A key that only fills up the last block counts as none: log 0.
    counts_P = pad(_exact(counts_M, q_HNd), (0, filled_m), value=-torch.inf)
    slopes_H, farthest = _exact(slopes_H, q_HNd), torch.tensor(far, dtype=torch.float32, device=device)

    def add_bias(score: Tensor, _b: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        distance = _truncated(_squared(query_x_P[i] - key_x_P[j], query_y_P[i] - key_y_P[j]))
        return score - slopes_H[head] * torch.minimum(distance, farthest) + counts_P[j]

    fills = (filled_n, filled_m, filled_m)
    filled = [pad(tensor, (0, 0, 0, fill)) for tensor, fill in zip((q_HNd, k_HMd, v_HMd), fills, strict=True)]
    return _run(*filled, score_mod=add_bias)[:, :n]


def _exact(constants: Tensor, q_HNd: Tensor) -> Tensor:
    """Return the constants where q is, in float32 at least: scores are float32 inside the kernel."""
    return constants.to(device=q_HNd.device, dtype=torch.promote_types(q_HNd.dtype, torch.float32))


def _squared(dx: Tensor, dy: Tensor) -> Tensor:
    return dx.float().square() + dy.float().square()


def _truncated(squared: Tensor) -> Tensor:
    """Return ``floor(sqrt(squared))`` of whole numbers; half of one makes it safe from a GPU's approximate root."""
    return torch.floor(torch.sqrt(squared + 0.5))


def _run(q_HPd: Tensor, k_HPd: Tensor, v_HPd: Tensor, *, score_mod: Any, block_mask: BlockMask | None = None) -> Tensor:
    """Return the kernel's (H, P, d) for whole blocks of patches."""
    d = q_HPd.shape[2]
    width = max(16, 1 << (d - 1).bit_length())
    # The kernel divides scores by the root of the width that it sees.
    q_HPd = q_HPd * (width / d) ** 0.5
    q, k, v = (pad(tensor, (0, width - d))[None] for tensor in (q_HPd, k_HPd, v_HPd))
    device_type = q.device.type
    # Autocast would make half precision of what came in float32, and another compilation.
    with torch.autocast(device_type, enabled=False), torch._dynamo.config.patch(cache_size_limit=64):
        out: Tensor = _kernel(device_type)(q, k, v, score_mod=score_mod, block_mask=block_mask)
    return out[0, :, :, :d]


@cache
def _kernel(device_type: str) -> Any:
    """Return FlexAttention, compiled where it has kernels."""
    return _compiled("inductor") if device_type == "cuda" else flex_attention


def _compiled(backend: Any) -> Any:
    """Return FlexAttention compiled for slides of all sizes at once; an error where torch would go on uncompiled."""
    return torch.compile(flex_attention, dynamic=True, fullgraph=True, backend=backend)


def _reachable_blocks(cells_P2: Tensor, radius: int, in_reach: Any) -> BlockMask:
    """Return the pairs of blocks whose rectangles come within the radius of each other; P is a multiple of a block.

    From the rectangles of the blocks: torch's own ``create_block_mask`` asks every pair of patches.
    """
    low_G2, high_G2 = cells_P2.view(-1, _BLOCK, 2).aminmax(dim=1)
    gap_GG2 = torch.maximum(low_G2[:, None] - high_G2[None], low_G2[None] - high_G2[:, None]).clamp(min=0)
    is_near_GG = gap_GG2.square().sum(dim=2) <= radius**2
    counts_G = is_near_GG.sum(dim=1, dtype=torch.int32)
    # Near blocks first; what follows them is not read.
    indices_GG = torch.argsort(~is_near_GG, dim=1, stable=True).to(torch.int32)
    return BlockMask.from_kv_blocks(
        counts_G[None, None],
        indices_GG[None, None],
        BLOCK_SIZE=_BLOCK,
        mask_mod=in_reach,
        seq_lengths=(len(cells_P2), len(cells_P2)),
    )
