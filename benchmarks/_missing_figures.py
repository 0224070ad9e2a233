"""From scores to figures, tables and pictures of the missing-modality study.

Everything shown is made of one flat mapping of figures, the one of the JSON line: ``DATA_auc:METHOD@PERCENT``,
``DATA_macro_f1:METHOD@PERCENT``, and differences with their standard errors, ``…_se``.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from _missing_runs import FILLINGS, HOSPITALS, METHODS, PERCENTS, VARIANTS, WITHOUT_KAPPA, Data, Job, Score
from _plots import panels, save
from matplotlib.axes import Axes

from fedpath.core.report import palette

Figures = dict[str, float]
PERFECT = "a perfect reader"
BARRED = (40, 60, 80, 100)
"""Percents at which bd must not be below any filling."""
TITLES: Mapping[Data, str] = {
    "planted": "planted slide and table",
    "many": "the same with more patients to learn from",
    "breast": "real table, planted slide",
    "federated": "five hospitals",
}
_STYLES: Mapping[str, tuple[str, int]] = {
    "bd": (palette.SITES[0], 0),
    "image-only": (palette.INK, 1),
    "clinical-only": (palette.MUTED, 2),
    "fill-zero": (palette.SITES[1], 1),
    "fill-mean": (palette.SITES[2], 2),
    "fill-autoencoder": (palette.SITES[3], 3),
    "ensemble": (palette.SITES[4], 0),
    PERFECT: (palette.SITES[6], 2),
}
"""Colour and dashes."""


def summarise(scores: Mapping[Job, Score], perfect: Mapping[tuple[Data, int], float]) -> Figures:
    """Return all figures."""
    plain = {job: score for job, score in scores.items() if job.variant in ("", WITHOUT_KAPPA)}
    figures: Figures = {f"{data}_auc:{PERFECT}@{percent}": value for (data, percent), value in perfect.items()}
    for data in dict.fromkeys(job.data for job in plain):
        found = _by_draw(data, plain)
        for (method, percent), draws in found.items():
            figures[f"{data}_auc:{method}@{percent}"] = mean(score.auc for score in draws)
            figures[f"{data}_macro_f1:{method}@{percent}"] = mean(score.macro_f1 for score in draws)
            for which in ("auc_with", "auc_without"):
                parts = [part for score in draws if (part := getattr(score, which)) is not None]
                if parts:
                    figures[f"{data}_{which}:{method}@{percent}"] = mean(parts)
        for percent in PERCENTS:
            best = max(FILLINGS, key=lambda method: figures[f"{data}_auc:{method}@{percent}"])
            for name, other in (("best_filling", best), ("image_only", "image-only")):
                differences = _paired(found["bd", percent], found[other, percent])
                figures |= _with_error(f"{data}_bd_minus_{name}_{percent}", differences)
    return figures | _of_variants(scores)


def ratios_of(figures: Figures, data: Data = "planted") -> Figures:
    """Return what is held against the bars."""
    ratios = {
        f"bd_minus_best_filling_{percent}": figures[f"{data}_bd_minus_best_filling_{percent}"] for percent in BARRED
    }
    lowest = min(figures[f"{data}_bd_minus_image_only_{percent}"] for percent in PERCENTS)
    return ratios | {"bd_minus_image_only_min": lowest}


def _by_draw(data: Data, scores: Mapping[Job, Score]) -> dict[tuple[str, int], list[Score]]:
    """Return the scores of each method and percent, one a draw, in the order of the draws."""
    found: dict[tuple[str, int], dict[int, Score]] = {}
    for job, score in scores.items():
        if job.data == data:
            # A model that never reads the table is the same at every rate, and trained once.
            name = f"{job.method} {job.variant}".strip()
            for percent in PERCENTS if job.method == "image-only" else (job.percent,):
                found.setdefault((name, percent), {})[job.draw] = score
    return {key: [draws[draw] for draw in sorted(draws)] for key, draws in found.items()}


def _paired(ours: Sequence[Score], theirs: Sequence[Score]) -> list[float]:
    return [one.auc - other.auc for one, other in zip(ours, theirs, strict=True)]


def _with_error(name: str, differences: Sequence[float]) -> Figures:
    error = stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
    return {name: mean(differences)} | ({} if math.isnan(error) else {f"{name}_se": error})


def _of_variants(scores: Mapping[Job, Score]) -> Figures:
    """Return the AUC of each variant of bd and its difference to bd as it is, in the same draws."""
    figures: Figures = {}
    found = {
        (job.variant or "as it is", job.percent, job.draw): score
        for job, score in scores.items()
        if (job.data, job.method) == ("many", "bd")
    }
    percents = [
        percent for percent in PERCENTS if {variant for variant, at, _ in found if at == percent} == VARIANTS.keys()
    ]
    draws = sorted({draw for _, _, draw in found})
    for variant in VARIANTS if percents else ():
        for percent in percents:
            those = [found[variant, percent, draw] for draw in draws]
            name = f"ablation_auc:{variant}@{percent}"
            figures[name] = mean(score.auc for score in those)
            if variant != "as it is":
                base = [found["as it is", percent, draw] for draw in draws]
                figures |= _with_error(f"ablation_difference:{variant}@{percent}", _paired(those, base))
    return figures


# --- tables -----------------------------------------------------------------------------------------------------------

Rows = list[list[str]]


def table_of(figures: Figures, data: Data, figure: str) -> Rows:
    """Return heading and rows: methods by missing rate, and for the AUC bd against the others."""
    heading = [f"of {HOSPITALS} hospitals" if data == "federated" else "patients without a table", *_rates(data)]
    methods = [*METHODS, f"bd {WITHOUT_KAPPA}", PERFECT]
    rows = [
        [method, *(_number(figures.get(f"{data}_{figure}:{method}@{percent}")) for percent in PERCENTS)]
        for method in methods
        if any(f"{data}_{figure}:{method}@{percent}" in figures for percent in PERCENTS)
    ]
    if figure == "auc":
        for name in ("best_filling", "image_only"):
            words = f"bd − {name.replace('_', ' ').replace('image only', 'image-only')}"
            rows.append([words, *(_difference(figures, f"{data}_bd_minus_{name}_{percent}") for percent in PERCENTS)])
    return [heading, *rows]


def ablation_of(figures: Figures) -> Rows:
    """Return heading and rows: variants of bd by missing rate, each with the difference to bd as it is."""
    percents = [percent for percent in PERCENTS if f"ablation_auc:as it is@{percent}" in figures]
    rows = []
    for variant in VARIANTS:
        cells = []
        for percent in percents:
            cell = _number(figures.get(f"ablation_auc:{variant}@{percent}"))
            key = f"ablation_difference:{variant}@{percent}"
            cells.append(f"{cell} ({_difference(figures, key)})" if key in figures else cell)
        rows.append([variant, *cells])
    return [["terms of bd", *(f"{percent} %" for percent in percents)], *rows]


def _rates(data: Data) -> list[str]:
    return [f"{percent // 20} without" if data == "federated" else f"{percent} %" for percent in PERCENTS]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _difference(figures: Figures, key: str) -> str:
    error = figures.get(f"{key}_se")
    return f"{figures[key]:+.3f}" + ("" if error is None else f" ± {error:.3f}")


# --- pictures ---------------------------------------------------------------------------------------------------------


def plot(figures: Figures, data: Data, path: Path, source: str) -> None:
    """Draw AUC and macro F1 against the missing rate."""
    title = f"When clinical tables are missing: {TITLES[data]}"
    figure, axes = panels(2, width=10.5, height=4.4, title=title, source=source)
    for axis, what in zip(axes, ("auc", "macro_f1"), strict=True):
        _panel(axis, figures, data, what)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    save(figure, path)


def _panel(axis: Axes, figures: Figures, data: Data, what: str) -> None:
    for method, (colour, dashes) in _STYLES.items():
        points = [(percent, figures.get(f"{data}_{what}:{method}@{percent}")) for percent in PERCENTS]
        drawn = [(percent, value) for percent, value in points if value is not None]
        if drawn:
            x, y = zip(*drawn, strict=True)
            style: dict[str, Any] = {"linestyle": palette.DASHES[dashes], "linewidth": 2.4 if method == "bd" else 1.5}
            style |= {"color": colour, "marker": "o", "markersize": 3.5, "zorder": 3 if method == "bd" else 2}
            axis.plot(x, y, label=method, **style)
    axis.set_title("AUC" if what == "auc" else "macro F1")
    axis.set_xticks(PERCENTS, _rates(data) if data != "federated" else [f"{percent // 20}" for percent in PERCENTS])
    axis.set_xlabel("hospitals without tables" if data == "federated" else "patients without a table")
    # Clinical-only falls to a coin's level and leaves the picture, so that the others can be told apart.
    shown = [
        value
        for key, value in figures.items()
        if key.startswith(f"{data}_{what}:") and not key.startswith(f"{data}_{what}:clinical-only")
    ]
    axis.set_ylim(min(shown) - 0.02, max(shown) + 0.01)
