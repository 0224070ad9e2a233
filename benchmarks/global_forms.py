"""LongMIL's global block in both of its forms: exact attention to every patch, and ours to means over windows.

Three questions: what a training step costs as the slide grows; how far the layer's output for each patch is from the
exact one as windows grow; whether slides get the same verdict, from weights trained in the exact form and read in
windows as well as from weights trained in windows. The task (see ``_tissue``) needs the whole slide: two kinds of
lesion count only together, wherever they are. `python benchmarks/global_forms.py [--quick] [--plot PATH]`.
"""

import argparse
import multiprocessing
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from _common import report, shared_data, take_turns
from _plots import BLUE, GREEN, ORANGE, log_ticks, panels, save
from _tissue import TRAINED_AT, WIDTH, longmil, synthetic
from _windows_against_exact import DEFAULT, FIRST_TEST, VERDICT_LIMITS, Case, LayerError, Verdicts, compare
from matplotlib.axes import Axes
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from fedpath.core.bags.bag import Bag
from fedpath.core.models.longmil import LongMil
from fedpath.core.report import palette
from fedpath.core.training.metrics import auc


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller slides, one seed, less training")
    parser.add_argument("--plot", type=Path, help="write the picture here")
    arguments = parser.parse_args()
    cases = _cases(quick=arguments.quick)
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(compare, cases))
    errors = _averaged([error for one, _ in found for error in one])
    verdicts = [verdict for _, several in found for verdict in several]
    seconds = _times((1024, 2048, 4096) if arguments.quick else (2048, 4096, 8192, 16_384))
    agreements = _agreements(verdicts)
    _print(errors, agreements, seconds)
    if arguments.plot:
        _plot(errors, verdicts, seconds, arguments.plot)
    figures, ratios = _figures(errors, agreements, seconds)
    report("global_forms", figures, ratios, {}, quick=arguments.quick)


def _cases(*, quick: bool) -> list[Case]:
    if quick:
        cases = [Case("synthetic", 0, 100, {TRAINED_AT: 20, 1024: 10}, (4096,)), Case("real", 0, 100, {}, (777,))]
    else:
        test = {TRAINED_AT: 100, 1024: 40}
        cases = [
            Case("synthetic", 0, 800, test, (4096, 16_384)),
            *(Case("synthetic", seed, 800, test, (4096,)) for seed in (1, 2)),
            Case("real", 0, 400, {TRAINED_AT: 100}, (777,)),
        ]
    try:
        shared_data()
    except SystemExit as error:
        print(f"without the real slide: {error}")
        cases = [case for case in cases if case.source != "real"]
    return cases


# --- time -------------------------------------------------------------------------------------------------------------

_TIMED = {
    "exact": {"global_form": "exact", "local_blocks": 0},
    "windows": {"global_form": "windows", "local_blocks": 0},
    "model": {"global_form": "windows"},
}
"""Options by name; ``model`` has the two local blocks, too."""


def _times(sizes: tuple[int, ...]) -> dict[str, dict[int, float]]:
    """Return the seconds of a training step, forward and backward, by what is timed and N."""
    seconds: dict[str, dict[int, float]] = {name: {} for name in _TIMED}
    for n in sizes:
        bag = synthetic(n, FIRST_TEST)
        models = {name: longmil(WIDTH, 0, inner=384, **options).train() for name, options in _TIMED.items()}
        steps = {name: partial(_step, model, bag) for name, model in models.items()}
        # A turn of the largest takes longer than all of the others together.
        for name, turns in take_turns(steps, turns=3 if n <= 8192 else 1).items():
            seconds[name][n] = median(turns)
    return seconds


def _step(model: LongMil, bag: Bag) -> None:
    model.zero_grad()
    model.loss(model(bag), 1).backward()


def _exponent(seconds: Mapping[int, float]) -> float:
    """Return b of the fit seconds ~ N^b."""
    return float(np.polyfit(np.log(list(seconds)), np.log(list(seconds.values())), 1)[0])


# --- showing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Agreement:
    """Verdicts in windows against those of exact attention, over the slides and seeds."""

    source: str
    n: int
    slides: int
    reading: str
    auc: float
    """Mean over the seeds."""
    mean_difference: float
    """Of the probabilities."""
    largest_difference: float
    same_verdict: float
    """Share of the slides on the same side of 1/2."""


def _agreements(verdicts: list[Verdicts]) -> list[Agreement]:
    found = []
    for source, n in dict.fromkeys((verdict.source, verdict.n) for verdict in verdicts):
        some = [verdict for verdict in verdicts if (verdict.source, verdict.n) == (source, n)]
        readings = {"exact": [one.exact for one in some]}
        readings |= {
            f"read in windows, {limit} at most": [one.read_in_windows[limit] for one in some]
            for limit in VERDICT_LIMITS
        }
        readings["trained in windows"] = [one.trained_in_windows for one in some]
        exact = np.concatenate(readings["exact"])
        for reading, parts in readings.items():
            p = np.concatenate(parts)
            found.append(
                Agreement(
                    source,
                    n,
                    len(exact),
                    reading,
                    auc=mean(_auc(one, part) for one, part in zip(some, parts, strict=True)),
                    mean_difference=float(np.abs(p - exact).mean()),
                    largest_difference=float(np.abs(p - exact).max()),
                    same_verdict=float(np.mean((p > 0.5) == (exact > 0.5))),
                )
            )
    return found


def _averaged(errors: list[LayerError]) -> list[LayerError]:
    """Return the means over the seeds."""
    groups: dict[tuple[str, bool, int, int], list[LayerError]] = {}
    for error in errors:
        groups.setdefault((error.source, error.is_trained, error.n, error.limit), []).append(error)
    measures = ("median", "p95", "of_variation")
    return [
        replace(group[0], **{name: mean(getattr(error, name) for error in group) for name in measures})
        for group in groups.values()
    ]


def _print(errors: list[LayerError], agreements: list[Agreement], seconds: Mapping[str, Mapping[int, float]]) -> None:
    layer = Table(title="the layer's output: windows against exact")
    for column in ("slide, weights", "N", "max_windows", "windows", "patches each", "median", "95 %", "of variation"):
        layer.add_column(column, justify="right")
    for error in errors:
        name = f"{error.source}, {'trained' if error.is_trained else 'initial'}"
        sizes = (error.n, error.limit, error.windows)
        shares = (error.median, error.p95, error.of_variation)
        layer.add_row(name, *map(str, sizes), f"{error.n / error.windows:.1f}", *(f"{share:.1%}" for share in shares))
    slides = Table(title="verdicts: windows against exact")
    for column in ("slides × seeds", "N", "", "AUC", "mean |Δp|", "largest", "same verdict"):
        slides.add_column(column, justify="right")
    for one in agreements:
        shown = (f"{one.auc:.3f}", f"{one.mean_difference:.3f}", f"{one.largest_difference:.3f}")
        slides.add_row(f"{one.slides} {one.source}", str(one.n), one.reading, *shown, f"{one.same_verdict:.1%}")
    time = Table(title="seconds of a training step")
    for column in ("", *map(str, seconds["exact"]), "exponent"):
        time.add_column(column, justify="right")
    for name, by_size in seconds.items():
        time.add_row(name, *(f"{value:.2f}" for value in by_size.values()), f"{_exponent(by_size):.2f}")
    for table in (layer, slides, time):
        Console(width=110).print(table)


def _auc(verdict: Verdicts, p: NDArray[np.float64]) -> float:
    value = auc(verdict.targets, p)
    return float("nan") if value is None else value


def _figures(
    errors: list[LayerError], agreements: list[Agreement], seconds: Mapping[str, Mapping[int, float]]
) -> tuple[dict[str, float], dict[str, float]]:
    figures: dict[str, float] = {}
    for name, by_size in seconds.items():
        figures |= {f"{name}_{n}_s": value for n, value in by_size.items()}
    for error in errors:
        if error.limit == DEFAULT:
            name = f"{error.source}_{'trained' if error.is_trained else 'initial'}_{error.n}"
            figures[f"{name}_median_error"] = error.median
            figures[f"{name}_error_of_variation"] = error.of_variation
    for one in agreements:
        name = f"{one.source}_{one.n}_{one.reading}".replace(",", "").replace(" ", "_")
        figures[f"{name}_auc"] = one.auc
        if one.reading != "exact":
            figures[f"{name}_mean_difference"] = one.mean_difference
            figures[f"{name}_largest_difference"] = one.largest_difference
            figures[f"{name}_same_verdict"] = one.same_verdict
    largest = max(seconds["exact"])
    ratios = {f"{name}_exponent": _exponent(by_size) for name, by_size in seconds.items()}
    ratios |= {
        f"{name}_last_doubling_exponent": _exponent(dict(list(by_size.items())[-2:]))
        for name, by_size in seconds.items()
    }
    ratios[f"exact_vs_windows_{largest}"] = seconds["exact"][largest] / seconds["windows"][largest]
    return figures, ratios


# --- the picture ------------------------------------------------------------------------------------------------------


def _plot(
    errors: list[LayerError], verdicts: list[Verdicts], seconds: Mapping[str, Mapping[int, float]], path: Path
) -> None:
    """Draw what a step costs, how far the layer's output is off, and the slides' probabilities."""
    title = "Attention to windows takes linear time; a layer's output shifts, a slide's verdict seldom does"
    source = (
        "Left: inner width 384, forward and backward. Middle and right: inner width 128, trained with exact attention "
        f"on slides of {TRAINED_AT} patches and read in windows. Middle: median of the patches; shaded up to the 95th "
        "percentile.\nbenchmarks/global_forms.py --plot"
    )
    figure, (left, middle, right) = panels(3, width=13, height=4.4, title=title, source=source)
    _plot_times(left, seconds)
    _plot_errors(middle, errors)
    _plot_verdicts(right, verdicts)
    save(figure, path)


def _plot_times(axes: Axes, seconds: Mapping[str, Mapping[int, float]]) -> None:
    styles: dict[str, tuple[str, dict[str, Any]]] = {
        "exact": ("exact global block", {"color": ORANGE, "marker": "s", "linestyle": (0, (5, 1.5))}),
        "model": ("whole model, windows", {"color": GREEN, "marker": "^", "linestyle": (0, (2, 1.2))}),
        "windows": ("global block, windows", {"color": BLUE, "marker": "o", "linewidth": 2.4}),
    }
    for name, (label, style) in styles.items():
        sizes, values = list(seconds[name]), list(seconds[name].values())
        axes.plot(sizes, values, label=f"{label}: N$^{{{_exponent(seconds[name]):.1f}}}$", **style)
    axes.set(title="Seconds of a training step", xlabel="patches N", xscale="log", yscale="log")
    log_ticks(axes.xaxis, list(seconds["exact"]))
    log_ticks(axes.yaxis, [0.1, 0.3, 1, 3, 10, 30], " s")
    axes.legend(loc="upper left")


def _plot_errors(axes: Axes, errors: list[LayerError]) -> None:
    trained = [error for error in errors if error.is_trained]
    styles = [(BLUE, "o"), (GREEN, "^"), (ORANGE, "s")]
    slides = dict.fromkeys((error.source, error.n) for error in trained)
    for (source, n), (colour, marker) in zip(slides, styles, strict=False):
        # Limits that lead to the same windows are one point.
        points = {n / one.windows: one for one in trained if (one.source, one.n) == (source, n)}
        x = sorted(points)
        axes.plot(x, [100 * points[one].median for one in x], color=colour, marker=marker, label=f"{source}, N = {n}")
        low, high = ([100 * getattr(points[one], edge) for one in x] for edge in ("median", "p95"))
        axes.fill_between(x, low, high, color=colour, alpha=0.15)
    axes.set(title="Error of the layer's output, a patch", xlabel="patches in a window", xscale="log", yscale="log")
    log_ticks(axes.xaxis, [10, 30, 100, 300, 1000])
    log_ticks(axes.yaxis, [0.1, 0.3, 1, 3, 10, 30, 100], " %")
    axes.legend(loc="lower right")


def _plot_verdicts(axes: Axes, verdicts: list[Verdicts]) -> None:
    axes.plot([0, 1], [0, 1], color=palette.MUTED, linewidth=1, linestyle="--")
    styles = [(BLUE, "o"), (GREEN, "^"), (ORANGE, "s")]
    slides = dict.fromkeys((verdict.source, verdict.n) for verdict in verdicts)
    for (source, n), (colour, marker) in zip(slides, styles, strict=False):
        some = [verdict for verdict in verdicts if (verdict.source, verdict.n) == (source, n)]
        exact = np.concatenate([verdict.exact for verdict in some])
        windows = np.concatenate([verdict.read_in_windows[DEFAULT] for verdict in some])
        name = f"{source}, N = {n}"
        # As pixels: hundreds of points are larger as shapes.
        style = {"s": 16, "color": colour, "marker": marker, "alpha": 0.6, "linewidth": 0, "rasterized": True}
        axes.scatter(exact, windows, label=name, **style)
    axes.set(title="Probability of a slide", xlabel="exact", ylabel="windows", aspect="equal")
    axes.legend(loc="upper left")


if __name__ == "__main__":
    main()
