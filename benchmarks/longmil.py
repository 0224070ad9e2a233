"""LongMIL's attention beside dense attention with a mask: time, memory, and how both grow with the slide.

Layers: 4 heads of width 96, radius 10, forward and backward, float32, no dropout, on patches of tissue-like shape that
cover about 60 % of their frame. Dense: torch's scaled_dot_product_attention with the bias as its mask, forward and
backward head by head, so that only one head's N × N bias exists at a time: the leanest dense form. Floor: the products
of the pairs within reach at the speed of one large product. Memory is the rise of the resident peak in a process of its
own. The last figures are of the whole model on 100,000 patches, D = 1024.

`python benchmarks/longmil.py [--quick]`: half an hour of two cores, nearly all of it the exact global block, which
--quick leaves out.
"""

import argparse
import math
import os
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from _common import report, take_turns
from _memory import peak_mb, peak_rise_mb
from scipy.ndimage import gaussian_filter
from scipy.spatial import KDTree
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fedpath.core.bags import Bag
from fedpath.core.models import build_model
from fedpath.core.models.spatial import WindowLayout, alibi_slopes, local_attention

_HEADS, _WIDTH, _RADIUS = 4, 96, 10
_DENSE_LIMIT = 16_384


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="two turns instead of three, and no exact global block at 100,000 patches"
    )
    quick = parser.parse_args().quick
    torch.set_num_threads(os.cpu_count() or 1)
    figures: dict[str, float] = {"threads": torch.get_num_threads()}
    sizes = (4096, 8192, 16_384, 65_536)
    dense_sizes = [n for n in sizes if n <= _DENSE_LIMIT]
    works = {f"local_{n}": _local(n) for n in sizes} | {f"dense_{n}": _dense(n) for n in dense_sizes}
    for name, seconds in take_turns(works, turns=2 if quick else 3).items():
        figures[f"{name}_s"] = median(seconds)
    for n in sizes:
        figures[f"local_{n}_mb"] = peak_rise_mb(_local, n)
    for n in dense_sizes:
        figures[f"dense_{n}_mb"] = peak_rise_mb(_dense, n)
    figures["floor_16384_s"] = _floor(16_384)
    for n in (4096,) if quick else (4096, 16_384):
        for form in ("exact", "windows"):
            (figures[f"model_{form}_{n}_s"],) = take_turns({form: _model(n, form)}, turns=1)[form]
    forms = ("windows",) if quick else ("windows", "exact")
    for form in forms:
        figures[f"model_{form}_100k_mb"] = peak_mb(_model, 100_000, form)
        print(
            f"whole model, {form} global block, 100,000 patches: {figures[f'model_{form}_100k_mb']:.0f} MB", flush=True
        )
    ratios = {
        "time_vs_dense_16k": figures["dense_16384_s"] / figures["local_16384_s"],
        "memory_vs_dense_16k": figures["dense_16384_mb"] / figures["local_16384_mb"],
        "time_per_patch_64k_vs_8k": figures["local_65536_s"] / 65_536 / (figures["local_8192_s"] / 8192),
        "peak_mb_100k": max(figures[f"model_{form}_100k_mb"] for form in forms),
        "time_vs_floor_16k": figures["local_16384_s"] / figures["floor_16384_s"],
    }
    bars = {
        "time_vs_dense_16k": "≥ 8",
        "memory_vs_dense_16k": "≥ 5",
        "time_per_patch_64k_vs_8k": "≤ 1.3",
        "peak_mb_100k": "≤ 20000",
    }
    report("longmil", figures, ratios, bars, quick=quick)


def tissue_cells(n: int, *, fill: float = 0.6, seed: int = 0) -> Tensor:
    """Return ``n`` cells (N, 2) of a few blobs that cover a share ``fill`` of a square frame, in reading order."""
    edge = math.ceil(math.sqrt(n / fill))
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal((edge, edge)), max(3.0, edge / 25))
    chosen = np.zeros(edge * edge, dtype=bool)
    chosen[np.argsort(noise, axis=None)[-n:]] = True
    y, x = np.divmod(np.flatnonzero(chosen), edge)
    return torch.from_numpy(np.stack([x, y], axis=1))


def _inputs(n: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    return [torch.randn(_HEADS, n, _WIDTH, generator=generator).requires_grad_() for _ in range(3)]


def _local(n: int) -> Callable[[], object]:
    """Return the work: the layer as the model calls it, with finding out which patches are near."""
    cells_N2, (q, k, v), slopes_H = tissue_cells(n), _inputs(n), alibi_slopes(_HEADS)
    grad = torch.ones_like(q)
    return lambda: torch.autograd.grad(
        local_attention(q, k, v, WindowLayout(cells_N2, _RADIUS), slopes_H), (q, k, v), grad
    )


def _dense(n: int) -> Callable[[], object]:
    cells_N2, (q, k, v), slopes_H = tissue_cells(n).float(), _inputs(n), alibi_slopes(_HEADS)

    def work() -> list[tuple[Tensor, ...]]:
        gradients = []
        for head in range(_HEADS):
            bias_NN = torch.cdist(cells_N2, cells_N2)
            is_far_NN = bias_NN > _RADIUS
            bias_NN.floor_().mul_(-float(slopes_H[head])).masked_fill_(is_far_NN, -math.inf)
            del is_far_NN
            parts = [tensor.detach()[head, None, None].squeeze(0).requires_grad_() for tensor in (q, k, v)]
            out = scaled_dot_product_attention(*(part[None] for part in parts), attn_mask=bias_NN[None, None])
            gradients.append(torch.autograd.grad(out, parts, torch.ones_like(out)))
        return gradients

    return work


def _floor(n: int) -> float:
    """Return the seconds of the products that the pairs within reach need: seven a head, ``2 · width`` operations each.

    Two are of the forward pass; the scores again and four more of the backward pass.
    """
    tree = KDTree(tissue_cells(n).numpy())
    n_pairs = tree.count_neighbors(tree, _RADIUS)
    a = torch.randn(2048, 2048)
    seconds = median(take_turns({"one large product": lambda: a @ a}, turns=9)["one large product"])
    return 7 * 2 * _WIDTH * _HEADS * n_pairs * seconds / (2 * 2048**3)


def _model(n: int, form: str) -> Callable[[], object]:
    model = build_model("longmil", width=1024, n_classes=2, options={"global_form": form}, seed=0).train()
    features_ND = torch.empty(n, 1024, dtype=torch.float16).uniform_(-1, 1)
    bag = Bag("slide", features_ND, 256 * tissue_cells(n), 256)

    def work() -> None:
        torch.set_num_threads(os.cpu_count() or 1)
        model.loss(model(bag), 1).backward()
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())

    return work


if __name__ == "__main__":
    main()
