"""What the figures share: size, styles of hospitals and models, axes with the legend below.

Hospitals keep their colour and dashes in every figure; the federated model is the thick black line, pooled data the
grey one. matplotlib is imported when the first figure is drawn, and without pyplot: no global state, no display.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedpath.core.report import palette
from fedpath.core.report.data import ModelResult, ReportData, display_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.6
"""Inches of every figure; two stand side by side on a wide page."""
LEFT, RIGHT, TOP, _AXIS, _ROW = 0.58, 0.12, 0.12, 0.46, 0.19
_LETTER = 0.07
"""Mean width of a letter at the figures' font size."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure ready for the page."""

    name: str
    svg: str
    title: str
    caption: str
    """Plain text."""


@dataclass(frozen=True, slots=True)
class Line:
    """One curve with its legend entry."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: dict[str, Any]


def site_style(index: int) -> dict[str, Any]:
    """Return how the hospital at ``index`` is drawn, as matplotlib line properties."""
    return {"color": palette.site_colour(index), "linestyle": palette.site_dashes(index), "linewidth": 1.4}


def model_style(data: ReportData, model: ModelResult) -> dict[str, Any]:
    """Return how a model is drawn; a local one like its hospital."""
    match model.kind:
        case "federated":
            return {"color": palette.INK, "linewidth": 2.2, "zorder": 5}
        case "pooled":
            return {"color": palette.MUTED, "linewidth": 1.6, "linestyle": (0, (1, 1))}
        case "local":
            return site_style(data.sites.index(model.site)) if model.site in data.sites else {"color": palette.MUTED}


def short(name: str) -> str:
    """Return a name cut in its middle where it would not fit a figure; the tables have it in full."""
    return name if len(name) <= 16 else f"{name[:10]}…{name[-5:]}"


def model_label(model: ModelResult) -> str:
    """Return a model's name as it fits a figure."""
    return display_name(model) if model.site is None else f"{short(model.site)} alone"


def margin(labels: Sequence[str]) -> float:
    """Return the inches that ``labels`` need at the left of the axes."""
    return max(LEFT, 0.16 + _LETTER * max(map(len, labels)))


def columns_for(labels: Sequence[str]) -> int:
    """Return how many columns of a legend, filled one after the other, fit below the axes: 4 at most."""

    def width(columns: int) -> float:
        parts = np.array_split(np.array([len(label) for label in labels]), columns)
        return float(sum(0.6 + _LETTER * part.max() for part in parts if part.size))

    return next((columns for columns in (4, 3, 2) if width(columns) <= WIDTH - LEFT - RIGHT), 1)


def canvas(height: float, rows: int, *, left: float = LEFT, right: float = RIGHT) -> "tuple[Figure, Axes]":
    """Return a figure whose axes are ``height`` inches high, with room for ``rows`` legend lines below.

    Args:
        height: inches.
        rows: of the legend.
        left: inches kept free at the left of the axes.
        right: inches kept free at their right.
    """
    from matplotlib.figure import Figure

    total = TOP + height + _AXIS + rows * _ROW + 0.04
    figure = Figure(figsize=(WIDTH, total))
    figure.patch.set_visible(False)
    width = WIDTH - left - right
    axes = figure.add_axes(
        (left / WIDTH, (total - TOP - height) / total, width / WIDTH, height / total), facecolor="none"
    )
    return figure, axes


def legend(figure: "Figure", lines: Iterable[Line], columns: int = 1) -> None:
    """Put the legend of ``lines`` below the axes, where it hides no curve."""
    from matplotlib.lines import Line2D

    shown = [line for line in lines if line.label]
    handles = [Line2D([], [], **{k: v for k, v in line.style.items() if k != "zorder"}) for line in shown]
    figure.legend(
        handles,
        [line.label for line in shown],
        loc="lower left",
        bbox_to_anchor=(LEFT / WIDTH - 0.012, 0.0),
        ncols=columns,
        borderpad=0,
        borderaxespad=0.2,
        labelspacing=0.35,
        handlelength=2.6,
        handletextpad=0.7,
        columnspacing=1.6,
        fontsize=9,
    )
