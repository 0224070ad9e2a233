"""Products of a bag's features with small matrices, without a copy of the bag in another type.

    times(x_ND, W_GD, b_G) = x Wᵀ + b        weighted_sum(a_KN, x_ND) = a x

A file holds float16. Plain torch would convert all N × D of it for the first product, again for each under autocast,
and keep the copies for the backward pass. Here the rows are converted a chunk at a time, forward and backward, and the
features are kept as they came. Like all products, these run in autocast's type where autocast is on, else in the
weights'.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedpath.core.models.memory import large_empty

# Rows at a time: few enough that a chunk stays in a CPU's cache, enough for efficient products.
_ROWS = 2048
_PART = 512


def times(x_ND: Tensor, weight_GD: Tensor, bias_G: Tensor | None = None) -> Tensor:
    """Return ``x Wᵀ + b`` (N, G) for features of any float type; differentiable in all three."""
    result_NG: Tensor = _Times.apply(x_ND, weight_GD, bias_G)  # type: ignore[no-untyped-call]
    return result_NG


def weighted_sum(a_KN: Tensor, x_ND: Tensor) -> Tensor:
    """Return ``a x`` (K, D), summed in float32 at least, for features of any float type; differentiable in both."""
    result_KD: Tensor = _WeightedSum.apply(a_KN, x_ND)  # type: ignore[no-untyped-call]
    return result_KD


def row_chunks(x_ND: Tensor, dtype: torch.dtype, size: int | None = None) -> Iterator[tuple[slice, Tensor]]:
    """Yield the chunks of a bag in order, each as its place and its rows in ``dtype``, valid until the next."""
    size = min(size or _ROWS, len(x_ND))
    buffer_nD = None if x_ND.dtype == dtype else large_empty((size, x_ND.shape[1]), dtype, x_ND.device)
    # On a CPU torch converts float16 to bfloat16 element by element. By way of float32 it is five times faster, in
    # parts small enough for the cache.
    by_way = dtype == torch.bfloat16 and x_ND.dtype == torch.float16 and x_ND.device.type == "cpu"
    wide_pD = large_empty((min(size, _PART), x_ND.shape[1]), torch.float32, x_ND.device) if by_way else None
    for start in range(0, len(x_ND), size):
        x_nD = x_ND[start : start + size]
        if buffer_nD is not None:
            converted_nD = buffer_nD[: len(x_nD)]
            if wide_pD is None:
                converted_nD.copy_(x_nD)
            else:
                for part in range(0, len(x_nD), _PART):
                    x_pD = x_nD[part : part + _PART]
                    converted_nD[part : part + _PART].copy_(wide_pD[: len(x_pD)].copy_(x_pD))
            x_nD = converted_nD
        yield slice(start, start + len(x_nD)), x_nD


class _Times(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_GD: Tensor, bias_G: Tensor | None) -> Tensor:
        ctx.type = product_type(weight_GD)
        ctx.save_for_backward(x_ND, weight_GD)
        y_NG = x_ND.new_empty((len(x_ND), len(weight_GD)), dtype=ctx.type)
        weight_GD = weight_GD.to(ctx.type)
        for rows, x_nD in row_chunks(x_ND, ctx.type):
            torch.mm(x_nD, weight_GD.T, out=y_NG[rows])
            if bias_G is not None:
                y_NG[rows] += bias_G.to(ctx.type)
        return y_NG

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y_NG: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        x_ND, weight_GD = ctx.saved_tensors
        d_weight_GD = torch.zeros_like(weight_GD)
        for rows, x_nD in row_chunks(x_ND, ctx.type):
            d_weight_GD += d_y_NG[rows].T @ x_nD
        d_x_ND = (d_y_NG @ weight_GD.to(ctx.type)).to(x_ND.dtype) if ctx.needs_input_grad[0] else None
        d_bias_G = d_y_NG.sum(dim=0, dtype=weight_GD.dtype) if ctx.needs_input_grad[2] else None
        return d_x_ND, d_weight_GD, d_bias_G


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a_KN: Tensor, x_ND: Tensor) -> Tensor:
        ctx.type = product_type(a_KN)
        ctx.save_for_backward(a_KN, x_ND)
        sum_KD = a_KN.new_zeros((len(a_KN), x_ND.shape[1]), dtype=torch.promote_types(a_KN.dtype, torch.float32))
        for rows, x_nD in row_chunks(x_ND, ctx.type):
            sum_KD += a_KN[:, rows].to(ctx.type) @ x_nD
        return sum_KD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_sum_KD: Tensor) -> tuple[Tensor, Tensor | None]:
        a_KN, x_ND = ctx.saved_tensors
        d_sum_KD = d_sum_KD.to(ctx.type)
        d_a_KN = torch.empty_like(a_KN)
        for rows, x_nD in row_chunks(x_ND, ctx.type):
            d_a_KN[:, rows] = d_sum_KD @ x_nD.T
        d_x_ND = (a_KN.to(ctx.type).T @ d_sum_KD).to(x_ND.dtype) if ctx.needs_input_grad[1] else None
        return d_a_KN, d_x_ND


def product_type(like: Tensor) -> torch.dtype:
    """Return autocast's type where it is on, which like all of torch leaves float64 alone; else the tensor's own."""
    if torch.is_autocast_enabled(like.device.type) and like.dtype != torch.float64:
        return torch.get_autocast_dtype(like.device.type)
    return like.dtype
