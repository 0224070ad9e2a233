"""Figures of the course of training: one point a round and hospital."""

import numpy as np

from fedpath.core.report import palette, wording
from fedpath.core.report.canvas import Line, Picture, canvas, columns_for, legend, short, site_style
from fedpath.core.report.data import ReportData, finite
from fedpath.core.report.svg import drawing, to_svg


def validation_by_round(data: ReportData) -> Picture | None:
    """Validation AUC of the global model at each hospital over the rounds, its weighted mean, and the best round."""
    lines = _by_round(data, "validation_auc")
    mean = Line(
        "Weighted mean",
        [r.number for r in data.rounds],
        finite([r.validation_auc for r in data.rounds]),
        {"color": palette.INK, "linewidth": 2.2, "zorder": 5},
    )
    lines.append(mean)
    if not np.isfinite([value for line in lines for value in line.y]).any():
        return None
    best = (
        ""
        if data.best_round is None
        else f" The vertical line marks round {data.best_round}, whose model was kept as best."
    )
    svg = _rounds_svg(
        data, "validation", lines, y="Validation AUC", alt=f"Validation AUC over the rounds.{best}", mark=True
    )
    return Picture(
        "validation",
        svg,
        "Validation AUC, round by round",
        f"The global model, measured at each hospital on patients it does not train on.{best}",
    )


def training_by_round(data: ReportData) -> Picture | None:
    """Training loss at each hospital over the rounds."""
    lines = _by_round(data, "training_loss")
    if not np.isfinite([value for line in lines for value in line.y]).any():
        return None
    last = [f"{line.label} {wording.fixed(line.y[-1], 3)}" for line in lines]
    alt = f"Training loss over the rounds; in the last round: {', '.join(last)}."
    return Picture(
        "training",
        _rounds_svg(data, "training", lines, y="Training loss", alt=alt, mark=False),
        "Training loss, round by round",
        "What each hospital's own training minimises. It falls when a hospital learns; levels differ between hospitals "
        f"with their {data.federation.unit}s.",
    )


def _by_round(data: ReportData, field: str) -> list[Line]:
    lines = []
    for index, site in enumerate(data.sites):
        entries = [round_.of(site) for round_ in data.rounds]
        values = finite([None if entry is None else getattr(entry, field) for entry in entries])
        lines.append(Line(short(site), [r.number for r in data.rounds], values, site_style(index)))
    return lines


def _rounds_svg(data: ReportData, name: str, lines: list[Line], *, y: str, alt: str, mark: bool) -> str:
    from matplotlib.ticker import MaxNLocator

    columns = columns_for([line.label for line in lines])
    with drawing():
        figure, axes = canvas(2.4, -(-len(lines) // columns))
        if mark and data.best_round is not None:
            axes.axvline(data.best_round, color=palette.MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        for line in lines:
            # A point a round, so that a hospital which answered once, or between two misses, is still seen.
            axes.plot(line.x, line.y, marker="o", markersize=2.8, **line.style)
        axes.set(xlabel="Round", ylabel=y)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
        legend(figure, lines, columns)
        return to_svg(figure, name=name, alt=alt)
