"""The rank of LongMIL's attention matrix as a slide grows, with and without the local mask.

The paper's claim: over thousands of patches the attention of all to all tends to a low rank, and a local mask raises
it. Here the queries and keys of a LongMIL attend in three forms: to all patches, to all with ALiBi, and within the
radius with ALiBi, as its local blocks do; and once without content, with queries of 0, where only the mask and ALiBi
are left. What is measured is the N × N matrix that our own functions apply: the values are an identity matrix, a strip
at a time (``_attention_matrix``). `python benchmarks/attention_rank.py [--quick] [--plot PATH] [--plot-checks PATH]`.
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
from _attention_matrix import Ranks, attention_matrix, forms, queries_and_keys, ranks
from _common import report, shared_data
from _plots import BLUE, GREEN, ORANGE, log_ticks, panels, save
from _tissue import INNER, TRAINED_AT, crop, longmil, planted, real, synthetic, train_briefly
from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fedpath.core.bags.bag import Bag
from fedpath.core.models.longmil import LongMil
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
_HEADS = 4
_FACTORS = (2, 4, 8, 16)
_FEW = 128
"""Queries whose scores are looked at."""


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
    inner: int = INNER
    """The model's inner width: that of four heads."""
    factor: int = 1
    """The queries, hence the scores before ALiBi, are multiplied by it: large ones make the attention sharp."""


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
    groups: dict[str, dict[int, Measured]] = {}
    for case, found in results.items():
        groups.setdefault(_group_of(case), {})[case.seed] = found
    _print(groups)
    if arguments.plot:
        _plot(groups["trained"], arguments.plot)
    if arguments.plot_checks:
        _plot_checks(groups, arguments.plot_checks)
    figures, ratios = _figures(groups)
    report("attention_rank", figures, ratios, {}, quick=arguments.quick)


def _group_of(case: Case) -> str:
    if case.source == "real":
        return "real"
    if case.slides:
        return "trained"
    if case.inner != INNER:
        return f"untrained_head_width_{case.inner // _HEADS}"
    return "untrained" if case.factor == 1 else _sharpened(case.factor)


def _sharpened(factor: int) -> str:
    return f"untrained_scores_times_{factor}"


def _cases(*, quick: bool) -> list[Case]:
    if quick:
        return [
            Case("synthetic", 0, 100, (256, 512, 1024), all_blocks_at=512),
            Case("synthetic", 0, 0, (256, 512, 1024)),
            Case("synthetic", 0, 0, (1024,), factor=8),
            Case("real", 0, 100, (128, 256, 777)),
        ]
    sizes = (256, 512, 1024, 2048)
    return [
        Case("synthetic", 0, 800, (*sizes, 4096), all_blocks_at=1024),
        *(Case("synthetic", seed, 800, sizes, all_blocks_at=1024) for seed in (1, 2)),
        Case("synthetic", 0, 0, sizes),
        *(Case("synthetic", 0, 0, (1024,), inner=_HEADS * head_width) for head_width in (4, 8, 96)),
        *(Case("synthetic", 0, 0, (1024,), factor=factor) for factor in _FACTORS),
        *(Case("real", seed, 400, (128, 256, 512, 777)) for seed in range(3)),
    ]


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(case: Case) -> Measured:
    """Return the ranks of the case's attention matrices."""
    torch.set_num_threads(1)
    slide = real() if case.source == "real" else synthetic(max(case.sizes), seed=9_500_000 + case.seed)
    model = longmil(slide.features_ND.shape[1], case.seed, inner=case.inner)
    if case.slides:
        ground = partial(crop, slide, TRAINED_AT) if case.source == "real" else partial(synthetic, TRAINED_AT)
        train_briefly(model, ground, slides=case.slides, seed=case.seed)
        _say_what_was_learned(case, model, ground)
    found = {}
    for n in case.sizes:
        bag = crop(slide, n, case.seed)
        for block in range(len(model.blocks)) if n == case.all_blocks_at else (0,):
            q_HNd, k_HNd = queries_and_keys(model, bag, block)
            q_HNd = q_HNd * case.factor
            _say_how_sharp(case, block, q_HNd[:, :_FEW], k_HNd)
            for form, attend in forms(model, bag).items():
                found[block, n, form] = ranks(attention_matrix(attend, q_HNd, k_HNd))
                if form == "local" and _group_of(case) == "untrained":
                    found[block, n, BARE] = ranks(attention_matrix(attend, torch.zeros_like(q_HNd), k_HNd))
    return found


def _say_how_sharp(case: Case, block: int, some_q_HQd: Tensor, k_HNd: Tensor) -> None:
    scores_HQN = some_q_HQd @ k_HNd.transpose(1, 2) / math.sqrt(k_HNd.shape[2])
    spread = float(scores_HQN.std(dim=2).mean())
    where = f"{_group_of(case)}, seed {case.seed}, N = {k_HNd.shape[1]}, block {block + 1}"
    print(f"{where}: a query's scores have a standard deviation of {spread:.2f}", flush=True)


def _say_what_was_learned(case: Case, model: LongMil, ground: Callable[[int], Bag]) -> None:
    examples = [planted(ground(seed), seed) for seed in range(9_000_000, 9_000_100)]
    value = auc([example.target for example in examples], predict(model, [example.bag for example in examples])[:, 1])
    print(f"{_group_of(case)}, seed {case.seed}: AUC {value:.3f} on 100 other slides", flush=True)


# --- showing ----------------------------------------------------------------------------------------------------------

Group = Mapping[int, Measured]
"""By seed."""


def forms_of(group: Group) -> list[str]:
    """Return the forms that were measured."""
    measured = {form for found in group.values() for _, _, form in found}
    return [form for form in _NAMES if form in measured]


def curve(group: Group, form: str, rank: str = "energy_H", block: int = 0) -> dict[int, list[float]]:
    """Return the ranks, means over the heads, of each seed by N."""
    by_size: dict[int, list[float]] = {}
    for found in group.values():
        for (at, n, name), measured in sorted(found.items()):
            if (at, name) == (block, form):
                by_size.setdefault(n, []).append(mean(getattr(measured, rank)))
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
            cells = [cell.replace("nan", "–") for cell in cells]
            table.add_row(f"{block + 1}, {n}", *cells)
        Console().print(table)


def _figures(groups: Mapping[str, Group]) -> tuple[dict[str, float], dict[str, float]]:
    figures = {}
    for name, group in groups.items():
        largest = max(n for found in group.values() for _, n, _ in found)
        for form in forms_of(group):
            figures[f"{name}_{form}_energy_rank_at_{largest}"] = mean(curve(group, form)[largest])
            if len(curve(group, form)) > 1:
                figures[f"{name}_{form}_growth"] = growth(group, form)
    largest = max(curve(groups["trained"], "all"))
    for head, value in enumerate(groups["trained"][0][0, largest, "alibi"].energy_H):
        figures[f"trained_alibi_head_{head + 1}_energy_rank_at_{largest}"] = value
    ratios = {
        "local_vs_all": figures[f"trained_local_energy_rank_at_{largest}"]
        / figures[f"trained_all_energy_rank_at_{largest}"],
        "local_vs_alibi": figures[f"trained_local_energy_rank_at_{largest}"]
        / figures[f"trained_alibi_energy_rank_at_{largest}"],
    }
    return figures, ratios


_COMMAND = "benchmarks/attention_rank.py"
_RANKS: list[float] = [10, 30, 100, 300, 1000, 3000]
_STYLES: dict[str, dict[str, Any]] = {
    "all": {"color": ORANGE, "marker": "s", "linestyle": (0, (5, 1.5))},
    "alibi": {"color": GREEN, "marker": "^", "linestyle": (0, (2, 1.2))},
    "local": {"color": BLUE, "marker": "o", "linewidth": 2.4},
}


def _plot(group: Group, path: Path) -> None:
    """Draw rank and rank / N against N, of the trained models on synthetic slides."""
    largest = max(curve(group, "all"))
    title = "With the local mask, the rank of attention grows with the slide"
    source = (
        "First block of a LongMIL (4 heads of 32) trained on 800 planted synthetic slides; mean over heads, band: "
        f"range over seeds (one seed at N = {largest}).\n{_COMMAND} --plot"
    )
    figure, (left, right) = panels(2, width=9.6, height=4.3, title=title, source=source)
    for form in FORMS:
        _draw(left, curve(group, form), form)
        _draw(right, {n: [100 * value / n for value in values] for n, values in curve(group, form).items()}, form)
    sizes = list(curve(group, "all"))
    _reference(left, sizes)
    head = INNER // _HEADS
    left.axhline(head, color=palette.MUTED, linewidth=1, linestyle=":")
    left.annotate("head width", (sizes[-1], head), xytext=(0, 3), textcoords="offset points", ha="right", fontsize=8.5)
    left.set_title("Energy rank: directions with 99 % of the energy")
    right.set_title("The same as a share of N")
    _axes(left, sizes, _RANKS)
    _axes(right, sizes, [0.3, 1, 3, 10, 30, 100], " %")
    for axes in (left, right):
        _name_at_the_end(axes)
    save(figure, path)


def _plot_checks(groups: Mapping[str, Group], path: Path) -> None:
    """Draw the same for a real slide and other ranks, and what becomes of it when the scores grow."""
    title = "A real slide, other ranks, and the limit: sharp attention has a high rank without a mask, too"
    source = "Mean over heads, band: range over seeds. Right: initial weights, N = 1024. " + _COMMAND + " --plot-checks"
    figure, axes = panels(4, width=13, height=3.9, title=title, source=source)
    shown = (
        ("Real slide: energy rank", groups.get("real", {}), "energy_H"),
        ("Trained: effective rank", groups["trained"], "effective_H"),
        ("Trained: numerical rank", groups["trained"], "numerical_H"),
    )
    for panel, (name, group, rank) in zip(axes, shown, strict=False):
        panel.set_title(name)
        curves = {form: curve(group, form, rank) for form in FORMS}
        sizes = [n for n, values in curves["all"].items() if not math.isnan(values[0])]
        for form in FORMS:
            _draw(panel, {n: curves[form][n] for n in sizes}, form)
        _axes(panel, sizes, _RANKS)
        _reference(panel, sizes)
    by_factor = {1: groups["untrained"]} | {
        factor: groups[_sharpened(factor)] for factor in _FACTORS if _sharpened(factor) in groups
    }
    for form in FORMS:
        _draw(axes[-1], {factor: curve(group, form)[1024] for factor, group in by_factor.items()}, form)
    _axes(axes[-1], list(by_factor), _RANKS, x="factor on the scores")
    axes[-1].set_title("Sharper attention: energy rank")
    for panel in axes[1:]:
        panel.sharey(axes[0])
    axes[0].set_ylim(9, 2600)
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


def _reference(axes: Axes, sizes: list[int]) -> None:
    """Draw the line on which the rank is N."""
    if len(sizes) < 2:
        return
    axes.plot(sizes, sizes, color=palette.MUTED, linewidth=1, linestyle="--")
    axes.annotate(
        "full rank", (sizes[-2], sizes[-2]), xytext=(-6, 2), textcoords="offset points", ha="right", fontsize=8.5
    )


def _axes(axes: Axes, sizes: list[int], ticks: list[float], unit: str = "", x: str = "patches N") -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    log_ticks(axes.xaxis, sizes)
    log_ticks(axes.yaxis, ticks, unit)
    axes.set_xlabel(x)


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
