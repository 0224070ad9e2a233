"""What the figures share: size, styles of hospitals and models, axes with the legend below.

Hospitals keep their colour and dashes in every figure; the federated model is the thick black line, pooled data the
grey one. matplotlib is imported when the first figure is drawn, and without pyplot: no global state, no display.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedpath.core.report import palette
from fedpath.core.report.data import ModelResult, ReportData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.6
"""Inches of every figure; two stand side by side on a wide page."""
LEFT, RIGHT, TOP, _AXIS, _ROW = 0.58, 0.12, 0.12, 0.46, 0.19


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


def canvas(height: float, rows: int) -> "tuple[Figure, Axes]":
    """Return a figure whose axes are ``height`` inches high, with room for ``rows`` legend lines below."""
    from matplotlib.figure import Figure

    total = TOP + height + _AXIS + rows * _ROW + 0.04
    figure = Figure(figsize=(WIDTH, total))
    figure.patch.set_visible(False)
    width = WIDTH - LEFT - RIGHT
    axes = figure.add_axes(
        (LEFT / WIDTH, (total - TOP - height) / total, width / WIDTH, height / total), facecolor="none"
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
