"""The rank of LongMIL's attention matrix as a slide grows, with and without the local mask.

The paper's claim: over thousands of patches the attention of all to all tends to a low rank, and a local mask raises
it. Here the queries and keys of a LongMIL attend in three forms: to all patches, to all with ALiBi, and within the
radius with ALiBi, as its local blocks do; and once without content, with queries of 0, where only the mask and ALiBi
are left. What is measured is the N × N matrix that our own functions apply: the values are an identity matrix, a strip
at a time. `python benchmarks/attention_rank.py [--quick] [--plot PATH] [--plot-checks PATH]`.

Three ranks of a matrix with singular values σ, mean over the heads:

- energy rank: how many hold 99 % of Σσ², i.e. the size of the best approximation whose squared error is 1 %;
- effective rank: exp of the entropy of σ / Σσ (Roy and Vetterli, 2007);
- numerical rank: σ > N · ε · σ_max with the ε of float32, as torch.linalg.matrix_rank.
"""

import argparse
import math
import multiprocessing
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from _common import report, shared_data
from _plots import BLUE, GREEN, ORANGE, log_ticks, panels, save
from _tissue import INNER, TRAINED_AT, crop, longmil, planted, real, synthetic, train_briefly
from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fedpath.core.bags.bag import Bag
from fedpath.core.models.longmil import LongMil
from fedpath.core.models.spatial import WindowLayout, global_attention, grid_cells, local_attention
from fedpath.core.report import palette
from fedpath.core.training.evaluation import predict
from fedpath.core.training.metrics import auc

FORMS = ("all", "alibi", "local")
BARE = "bare"
_NAMES = {
    "all": "all patches",
    "alibi": "all patches, ALiBi",
    "local": "local mask + ALiBi",
    BARE: "local, queries 0",
}
_STRIP = 512
_FINE = 2048
"""Up to this N all three ranks, in float64; beyond it the energy rank in float32, whose error is far below 1 %."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """One model on one slide, cropped to several sizes."""

    source: str
    """``synthetic`` or ``real``."""
    seed: int
    slides: int
    """How many it is trained on; 0 leaves the initial weights."""
    sizes: tuple[int, ...]
    all_blocks_at: int = 0
    """At this N, all blocks are measured, else the first."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Mean over the heads."""

    energy: float
    effective: float = math.nan
    numerical: float = math.nan


Measured = Mapping[tuple[int, int, str], Ranks]
"""By block (from 0), N and form."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="up to 1024 patches, one seed, less training")
    parser.add_argument("--plot", type=Path, help="write the picture of rank against N here")
    parser.add_argument("--plot-checks", type=Path, help="write the picture with other ranks, slides and weights here")
    arguments = parser.parse_args()
    cases = _cases(quick=arguments.quick)
    try:
        shared_data()
    except SystemExit as error:
        print(f"without the real slide: {error}")
        cases = [case for case in cases if case.source != "real"]
    # The longest first: there is a process a core.
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        results = dict(zip(cases, pool.map(measure, cases), strict=True))
    groups = {
        "trained": {case.seed: found for case, found in results.items() if case.source == "synthetic" and case.slides},
        "untrained": {case.seed: found for case, found in results.items() if not case.slides},
        "real": {case.seed: found for case, found in results.items() if case.source == "real"},
    }
    groups = {name: group for name, group in groups.items() if group}
    _print(groups)
    if arguments.plot:
        _plot(groups["trained"], arguments.plot)
    if arguments.plot_checks:
        _plot_checks(groups, arguments.plot_checks)
    figures, ratios = _figures(groups)
    report("attention_rank", figures, ratios, {}, quick=arguments.quick)


def _cases(*, quick: bool) -> list[Case]:
    if quick:
        return [
            Case("synthetic", 0, 100, (256, 512, 1024), all_blocks_at=512),
            Case("synthetic", 0, 0, (256, 512, 1024)),
            Case("real", 0, 100, (128, 256, 777)),
        ]
    sizes = (256, 512, 1024, 2048)
    return [
        Case("synthetic", 0, 800, (*sizes, 4096), all_blocks_at=1024),
        *(Case("synthetic", seed, 800, sizes, all_blocks_at=1024) for seed in (1, 2)),
        Case("synthetic", 0, 0, sizes),
        *(Case("real", seed, 400, (128, 256, 512, 777)) for seed in range(3)),
    ]


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(case: Case) -> Measured:
    """Return the ranks of the case's attention matrices."""
    torch.set_num_threads(1)
    slide = real() if case.source == "real" else synthetic(max(case.sizes), seed=9_500_000 + case.seed)
    model = longmil(slide.features_ND.shape[1], case.seed)
    if case.slides:
        ground = partial(crop, slide, TRAINED_AT) if case.source == "real" else partial(synthetic, TRAINED_AT)
        train_briefly(model, ground, slides=case.slides, seed=case.seed)
        _say_what_was_learned(case, model, ground)
    found = {}
    for n in case.sizes:
        bag = crop(slide, n, case.seed)
        for block in range(len(model.blocks)) if n == case.all_blocks_at else (0,):
            q_HNd, k_HNd = queries_and_keys(model, bag, block)
            for form, attend in forms(model, bag).items():
                found[block, n, form] = ranks(attention_matrix(attend, q_HNd, k_HNd))
                if form == "local" and not case.slides:
                    found[block, n, BARE] = ranks(attention_matrix(attend, torch.zeros_like(q_HNd), k_HNd))
        print(f"{case.source}, seed {case.seed}, {case.slides} slides seen: N = {n} done", flush=True)
    return found


def _say_what_was_learned(case: Case, model: LongMil, ground: Callable[[int], Bag]) -> None:
    examples = [planted(ground(seed), seed) for seed in range(9_000_000, 9_000_100)]
    value = auc([example.target for example in examples], predict(model, [example.bag for example in examples])[:, 1])
    print(f"{case.source}, seed {case.seed}, {case.slides} slides seen: AUC {value:.3f} on 100 others", flush=True)


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
    """Return the three ranks of attention matrices, mean over the heads."""
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
    return Ranks(*(mean(column) for column in zip(*found, strict=True)))


# --- showing ----------------------------------------------------------------------------------------------------------

Group = Mapping[int, Measured]
"""By seed."""


def forms_of(group: Group) -> list[str]:
    """Return the forms that were measured."""
    measured = {form for found in group.values() for _, _, form in found}
    return [form for form in _NAMES if form in measured]


def curve(group: Group, form: str, rank: str = "energy", block: int = 0) -> dict[int, list[float]]:
    """Return the ranks over the seeds by N."""
    by_size: dict[int, list[float]] = {}
    for found in group.values():
        for (at, n, name), measured in sorted(found.items()):
            if (at, name) == (block, form):
                by_size.setdefault(n, []).append(getattr(measured, rank))
    return dict(sorted(by_size.items()))


def growth(group: Group, form: str) -> float:
    """Return b of the fit energy rank ~ N^b over the seeds' means."""
    means = {n: mean(values) for n, values in curve(group, form).items()}
    return float(np.polyfit(np.log(list(means)), np.log(list(means.values())), 1)[0])


def _print(groups: Mapping[str, Group]) -> None:
    for name, group in groups.items():
        table = Table(title=f"{name}: energy / effective / numerical rank, mean over heads and {len(group)} seeds")
        table.add_column("block, N", justify="right")
        shown = forms_of(group)
        for form in shown:
            table.add_column(_NAMES[form], justify="right")
        for block, n in sorted({(block, n) for found in group.values() for block, n, _ in found}):
            cells = [
                " / ".join(f"{mean(curve(group, form, rank, block)[n]):.0f}" for rank in Ranks.__slots__)
                for form in shown
            ]
            table.add_row(f"{block + 1}, {n}", *cells)
        Console().print(table)


def _figures(groups: Mapping[str, Group]) -> tuple[dict[str, float], dict[str, float]]:
    figures = {}
    for name, group in groups.items():
        largest = max(n for found in group.values() for _, n, _ in found)
        for form in forms_of(group):
            figures[f"{name}_{form}_energy_rank_at_{largest}"] = mean(curve(group, form)[largest])
            figures[f"{name}_{form}_growth"] = growth(group, form)
    largest = max(curve(groups["trained"], "all"))
    ratios = {
        "local_vs_all": figures[f"trained_local_energy_rank_at_{largest}"]
        / figures[f"trained_all_energy_rank_at_{largest}"],
        "local_vs_alibi": figures[f"trained_local_energy_rank_at_{largest}"]
        / figures[f"trained_alibi_energy_rank_at_{largest}"],
    }
    return figures, ratios


_STYLES: dict[str, dict[str, Any]] = {
    "all": {"color": ORANGE, "marker": "s", "linestyle": (0, (5, 1.5))},
    "alibi": {"color": GREEN, "marker": "^", "linestyle": (0, (2, 1.2))},
    "local": {"color": BLUE, "marker": "o", "linewidth": 2.4},
}


def _plot(group: Group, path: Path) -> None:
    """Draw rank and rank / N against N, of the trained models on synthetic slides."""
    largest = max(curve(group, "all"))
    title = "Without the local mask, more patches hardly raise the rank of attention"
    source = (
        "First block of a LongMIL (4 heads of 32) trained on 800 planted synthetic slides; mean over heads, band: "
        f"range over seeds (one seed at N = {largest}).\nbenchmarks/attention_rank.py --plot"
    )
    figure, (left, right) = panels(2, width=9.6, height=4.3, title=title, source=source)
    for form in FORMS:
        _draw(left, curve(group, form), form)
        _draw(right, {n: [100 * value / n for value in values] for n, values in curve(group, form).items()}, form)
    sizes = list(curve(group, "all"))
    _reference(left, sizes, sizes, "full rank")
    head = INNER // 4
    left.axhline(head, color=palette.MUTED, linewidth=1, linestyle=":")
    left.annotate("head width", (sizes[-1], head), xytext=(0, 3), textcoords="offset points", ha="right", fontsize=8.5)
    left.set_title("Energy rank: directions with 99 % of the energy")
    right.set_title("The same as a share of N")
    _axes(left, sizes, [10, 30, 100, 300, 1000, 3000])
    _axes(right, sizes, [0.3, 1, 3, 10, 30, 100], " %")
    for axes in (left, right):
        _name_at_the_end(axes)
    save(figure, path)


def _plot_checks(groups: Mapping[str, Group], path: Path) -> None:
    """Draw the same for other weights, another slide and other ranks."""
    title = "The same for other weights, a real slide, and other ranks"
    source = "Mean over heads, band: range over seeds. benchmarks/attention_rank.py --plot-checks"
    figure, axes = panels(4, width=13, height=3.9, title=title, source=source)
    shown = (
        ("Initial weights: energy rank", groups["untrained"], "energy"),
        ("Real slide: energy rank", groups.get("real"), "energy"),
        ("Trained: effective rank", groups["trained"], "effective"),
        ("Trained: numerical rank", groups["trained"], "numerical"),
    )
    for panel, (name, group, rank) in zip(axes, shown, strict=True):
        panel.set_title(name)
        if group is None:
            continue
        curves = {form: curve(group, form, rank) for form in FORMS}
        sizes = [n for n, values in curves["all"].items() if not math.isnan(values[0])]
        for form in FORMS:
            _draw(panel, {n: curves[form][n] for n in sizes}, form)
        _reference(panel, sizes, sizes, "full rank")
        _axes(panel, sizes, [10, 30, 100, 300, 1000])
    for panel in axes[1:]:
        panel.sharey(axes[0])
    axes[-1].legend(loc="lower right")
    save(figure, path)


def _draw(axes: Axes, values: Mapping[int, list[float]], form: str) -> None:
    sizes = list(values)
    means = [mean(values[n]) for n in sizes]
    axes.plot(sizes, means, label=_NAMES[form], **_STYLES[form])
    axes.fill_between(
        sizes,
        [min(values[n]) for n in sizes],
        [max(values[n]) for n in sizes],
        color=_STYLES[form]["color"],
        alpha=0.18,
    )


def _reference(axes: Axes, sizes: list[int], values: list[int], name: str) -> None:
    axes.plot(sizes, values, color=palette.MUTED, linewidth=1, linestyle="--")
    axes.annotate(name, (sizes[-2], values[-2]), xytext=(-6, 2), textcoords="offset points", ha="right", fontsize=8.5)


def _axes(axes: Axes, sizes: list[int], ticks: list[float], unit: str = "") -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    log_ticks(axes.xaxis, sizes)
    log_ticks(axes.yaxis, ticks, unit)
    axes.set_xlabel("patches N")


def _name_at_the_end(axes: Axes) -> None:
    """Write each curve's name beside its last point."""
    for line in axes.lines:
        if not line.get_label().startswith("_"):
            x, y = line.get_xdata()[-1], line.get_ydata()[-1]
            axes.annotate(
                line.get_label(), (x, y), xytext=(8, 0), textcoords="offset points", va="center", color=line.get_color()
            )


if __name__ == "__main__":
    main()
