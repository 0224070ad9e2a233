"""The attention matrices of a LongMIL's heads on a slide, as our own functions apply them, and their ranks.

Three ranks of a matrix with singular values σ:

- energy rank: how many hold 99 % of Σσ², i.e. the size of the best approximation whose squared error is 1 %;
- effective rank: exp of the entropy of σ / Σσ (Roy and Vetterli, 2007);
- numerical rank: σ > N · ε · σ_max with the ε of float32, as torch.linalg.matrix_rank.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fedpath.core.bags.bag import Bag
from fedpath.core.models.longmil import LongMil
from fedpath.core.models.spatial import WindowLayout, global_attention, grid_cells, local_attention

_STRIP = 512
_FINE = 2048
"""Up to this N all three ranks, in float64; beyond it the energy rank in float32, whose error is far below 1 %."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Ranks:
    """Of all heads of a block; NaN where not measured."""

    energy_H: tuple[float, ...]
    effective_H: tuple[float, ...]
    numerical_H: tuple[float, ...]


def queries_and_keys(model: LongMil, bag: Bag, block: int) -> tuple[Tensor, Tensor]:
    """Return the queries and keys (H, N, d) that a block computes for a slide."""
    kept: list[Tensor] = []
    layer = model.blocks[block]
    hook = layer.qkv.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    with torch.no_grad():
        model(bag)
    hook.remove()
    q_HNd, k_HNd, _ = kept[0].unflatten(1, (3, layer.heads, -1)).permute(1, 2, 0, 3).contiguous()
    return q_HNd, k_HNd


def forms(model: LongMil, bag: Bag) -> dict[str, Attend]:
    """Return the three forms of attention over a slide."""
    cells_N2 = grid_cells(bag.coords_N2, bag.patch_size_level0)
    layout = WindowLayout(cells_N2, model.options.radius)
    slopes_H = model.slopes_H
    everywhere = partial(global_attention, query_cells_N2=cells_N2, key_cells_M2=cells_N2, far=model.options.far)
    return {
        "all": partial(everywhere, slopes_H=torch.zeros_like(slopes_H)),
        "alibi": partial(everywhere, slopes_H=slopes_H),
        "local": partial(local_attention, layout=layout, slopes_H=slopes_H),
    }


def attention_matrix(attend: Attend, q_HNd: Tensor, k_HNd: Tensor) -> Tensor:
    """Return the matrix (H, N, N) that ``attend`` multiplies the values with."""
    heads, n, d = q_HNd.shape
    # Zeros widen queries and keys to the strip without changing a product; the factor undoes the larger 1 / sqrt(d).
    width = max(d, _STRIP)
    q_HNw = nn.functional.pad(q_HNd * math.sqrt(width / d), (0, width - d))
    k_HNw = nn.functional.pad(k_HNd, (0, width - d))
    matrix_HNN = q_HNd.new_empty(heads, n, n)
    for start in range(0, n, width):
        columns = slice(start, min(start + width, n))
        v_Nw = q_HNd.new_zeros(n, width)
        v_Nw[columns, : columns.stop - start].fill_diagonal_(1)
        out_HNw = attend(q_HNw, k_HNw, v_Nw.expand(heads, n, width))
        matrix_HNN[:, :, columns] = out_HNw[:, :, : columns.stop - start]
    return matrix_HNN


def ranks(matrix_HNN: Tensor) -> Ranks:
    """Return the three ranks of each head's attention matrix."""
    n = matrix_HNN.shape[1]
    is_fine = n <= _FINE
    found = []
    for matrix_NN in matrix_HNN.double() if is_fine else matrix_HNN:
        # σ² are the eigenvalues of A Aᵀ, found ten times as fast as σ. In float64 that resolves σ down to 1e-8 of the
        # largest; the numerical rank asks for more than 1e-5.
        energy_N = torch.linalg.eigvalsh(matrix_NN @ matrix_NN.T).clamp(min=0).flip(0)
        energy = 1 + int((energy_N.cumsum(0) < 0.99 * energy_N.sum()).sum())
        effective = numerical = math.nan
        if is_fine:
            sigma_N = energy_N.sqrt()
            effective = float(torch.special.entr(sigma_N / sigma_N.sum()).sum().exp())
            numerical = float((sigma_N > n * torch.finfo(torch.float32).eps * sigma_N[0]).sum())
        found.append((energy, effective, numerical))
    return Ranks(*zip(*found, strict=True))
