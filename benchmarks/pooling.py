"""A training step of ACMIL and ABMIL against its matrix products alone, and against plain float32 autograd.

One bag of 50,000 patches (--quick: 10,000) of 1024 float16 features, dropout 0.25, forward and backward, all cores. The
products alone: the same shapes in the same precision, on whole arrays that exist beforehand, nothing between them. The
plain implementation: the same model with its pooling in a dozen lines of torch, on a float32 copy. All take turns;
ratios are medians over the turns. Memory is what a fresh process grows by beyond the bag of 50,000 in one step.

The precision is the one that training chooses on this machine; where torch has bfloat16 kernels for the CPU, both are
timed. `python pooling.py [--quick]`
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
from _common import report
from torch import Tensor
from torch.nn.functional import dropout, linear

from fedpath.core.bags import Bag
from fedpath.core.models import BagModel, build_model
from fedpath.core.models.gated_pool import Gate, Hidden, Select
from fedpath.core.training.precision import Chosen, choose_precision, forward

_N = 50_000
_WIDTH, _INNER, _ATTENTION, _DROPOUT = 1024, 512, 128, 0.25
_MODELS = ("acmil", "abmil")
_CPU = torch.device("cpu")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller bag, fewer turns")
    parser.add_argument("--memory-of", choices=_MODELS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    n = 10_000 if arguments.quick else _N
    chosen = choose_precision("auto", _CPU)
    if arguments.memory_of:
        print(_memory_growth(arguments.memory_of, _N, chosen))
        return

    amx = torch.cpu._is_amx_tile_supported()
    precisions: list[Chosen] = ["float32", "bfloat16"] if torch.cpu._is_avx512_bf16_supported() or amx else ["float32"]
    figures: dict[str, float] = {"patches": n, "threads": torch.get_num_threads()}
    ratios: dict[str, float] = {}
    bag = _make_bag(n)
    for name in _MODELS:
        model = _make_model(name)
        tasks: dict[str, Callable[[], None]] = {"plain": lambda model=model: _plain_step(model, bag)}
        for precision in precisions:
            tasks[precision] = lambda model=model, precision=precision: _step(model, bag, precision)
            tasks[f"products_{precision}"] = _products(model, bag, precision)
        times = _take_turns(tasks, turns=5 if arguments.quick else 9)
        figures |= {f"{name}_{task}_s": median(seconds) for task, seconds in times.items()}
        figures |= {f"{name}_{p}_vs_gemm": _ratio(times[p], times[f"products_{p}"]) for p in precisions if p != chosen}
        ratios[f"{name}_vs_gemm"] = _ratio(times[chosen], times[f"products_{chosen}"])
        (ratios if amx else figures)[f"{name}_vs_plain_float32"] = _ratio(times["plain"], times[chosen])
    for name in _MODELS:
        command = [sys.executable, __file__, "--memory-of", name]
        grown = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        ratios[f"extra_memory_{name}"] = grown / (_N * _WIDTH * 4)
    faster = "≥ 2.5" if amx else "none: this CPU has no AMX"
    bars = {f"{name}_vs_gemm": f"≤ 1.3, {chosen}" for name in _MODELS}
    bars |= {f"{name}_vs_plain_float32": f"{faster}, {chosen}" for name in _MODELS}
    bars |= {f"extra_memory_{name}": "≤ 1.2 of the float32 features" for name in _MODELS}
    report("pooling", figures, ratios, bars, quick=arguments.quick)


def _make_bag(n: int) -> Bag:
    return Bag("slide", torch.randn(n, _WIDTH, dtype=torch.float16), torch.zeros(n, 2, dtype=torch.int64), 256)


def _make_model(name: str) -> BagModel:
    options = {"inner": _INNER, "attention": _ATTENTION, "dropout": _DROPOUT}
    return build_model(name, width=_WIDTH, n_classes=2, options=options, seed=0).train()


def _step(model: BagModel, bag: Bag, precision: Chosen) -> None:
    model.zero_grad()
    model.loss(forward(model, bag, device=_CPU, precision=precision), 1).backward()


def _plain_step(model: BagModel, bag: Bag) -> None:
    with patch.object(sys.modules[type(model).__module__], "attention_pool", _plain_pool):
        _step(model, bag, "float32")


def _plain_pool(
    x_ND: Tensor,
    hidden: Hidden,
    gate: Gate,
    score_weight_KA: Tensor,
    score_bias_K: Tensor,
    select: Select | None = None,
) -> tuple[Tensor, Tensor]:
    """What anyone would write."""
    h_NL = dropout(torch.relu(linear(x_ND.float(), hidden.weight_LD, hidden.bias_L)), hidden.dropout)
    v_NA, u_NA = linear(h_NL, gate.weight_GL, gate.bias_G).chunk(2, dim=1)
    scores_KN = linear(torch.tanh(v_NA) * torch.sigmoid(u_NA), score_weight_KA, score_bias_K).T
    attention_KN = torch.softmax(scores_KN if select is None else select(scores_KN), dim=1)
    return attention_KN @ h_NL, attention_KN


def _products(model: BagModel, bag: Bag, precision: Chosen) -> Callable[[], None]:
    """Return a function that does a step's matrix products, forward then backward, into arrays of its own."""
    dtype = getattr(torch, precision)
    n, n_branches = len(bag), model.score.weight.shape[0]
    x_ND = bag.features_ND.to(dtype)
    w_LD, vu_GL, s_KA = (torch.randn(shape, dtype=dtype) / 32 for shape in _shapes(n_branches))
    h_NL, d_h_NL = torch.empty(2, n, _INNER, dtype=dtype)
    gate_NG = torch.empty(n, 2 * _ATTENTION, dtype=dtype)
    g_NA, d_g_NA = torch.rand(2, n, _ATTENTION, dtype=dtype)
    a_KN, d_a_KN = torch.empty(2, n_branches, n, dtype=dtype)
    pooled_KL = torch.empty(n_branches, _INNER, dtype=dtype)
    d_w_LD, d_vu_GL, d_s_KA = torch.empty_like(w_LD), torch.empty_like(vu_GL), torch.empty_like(s_KA)

    def run() -> None:
        torch.mm(x_ND, w_LD.T, out=h_NL)
        torch.mm(h_NL, vu_GL.T, out=gate_NG)
        torch.mm(s_KA, g_NA.T, out=a_KN)
        torch.mm(a_KN, h_NL, out=pooled_KL)
        torch.mm(pooled_KL, h_NL.T, out=d_a_KN)
        torch.mm(a_KN, g_NA, out=d_s_KA)
        torch.mm(a_KN.T, s_KA, out=d_g_NA)
        torch.mm(gate_NG.T, h_NL, out=d_vu_GL)
        torch.mm(gate_NG, vu_GL, out=d_h_NL)
        d_h_NL.addmm_(a_KN.T, pooled_KL)
        torch.mm(d_h_NL.T, x_ND, out=d_w_LD)

    return run


def _shapes(n_branches: int) -> list[tuple[int, int]]:
    return [(_INNER, _WIDTH), (2 * _ATTENTION, _INNER), (n_branches, _ATTENTION)]


def _take_turns(tasks: dict[str, Callable[[], None]], turns: int) -> dict[str, list[float]]:
    """Return the seconds of each task in each turn, after one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(turns + 1):
        for name, task in tasks.items():
            started = time.perf_counter()
            task()
            if turn > 0:
                times[name].append(time.perf_counter() - started)
    return times


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def _memory_growth(name: str, n: int, precision: Chosen) -> int:
    """Return by how many bytes the resident memory rises at most in a step; the libraries are loaded by another."""
    model, bag = _make_model(name), _make_bag(n)
    _step(model, Bag("small", bag.features_ND[:10], bag.coords_N2[:10], 256), precision)
    model.zero_grad()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = _status("VmRSS")
    _step(model, bag, precision)
    return _status("VmHWM") - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    main()
