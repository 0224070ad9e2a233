"""Figures of a training without a federation, as files of their own: its course, and how far to trust its figures.

They are drawn as the report's are, but stand alone: SVG for papers, PNG for everything else.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpath.core.files import write_bytes
from fedpath.core.report import palette
from fedpath.core.report.svg import drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 5.6
_DASHED = (0, (4, 2))
_RING: dict[str, Any] = {"marker": "o", "markersize": 8, "fillstyle": "none", "linestyle": "none"}


@dataclass(frozen=True, slots=True)
class Course:
    """One training, a point a validation; figures that there are not are NaN."""

    label: str
    epochs: Sequence[int]
    training_loss: Sequence[float]
    validation_loss: Sequence[float]
    validation_auc: Sequence[float]
    best_epoch: int


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Slides whose top class has a similar probability."""

    confidence: float
    accuracy: float
    slides: int


def write_course(path: Path, courses: Sequence[Course]) -> None:
    """Draw losses and, where there is one, validation AUC over the epochs, one colour a training, as .svg and .png.

    Args:
        path: without an extension.
        courses: at least one.
    """
    with_auc = any(math.isfinite(value) for course in courses for value in course.validation_auc)
    with drawing():
        figure, panels = _panels((2.0, 1.7) if with_auc else (2.0,), whole=True)
        for index, course in enumerate(courses):
            style: dict[str, Any] = {
                "color": palette.INK if len(courses) == 1 else palette.site_colour(index),
                "linewidth": 1.6 if len(courses) == 1 else 1.2,
                "marker": "o",
                "markersize": 2.4,
            }
            panels[0].plot(course.epochs, course.training_loss, **style)
            panels[0].plot(course.epochs, course.validation_loss, linestyle=_DASHED, **style)
            if with_auc:
                panels[1].plot(course.epochs, course.validation_auc, linestyle=_DASHED, clip_on=False, **style)
                at_best = dict(zip(course.epochs, course.validation_auc, strict=True))[course.best_epoch]
                panels[1].plot([course.best_epoch], [at_best], clip_on=False, color=style["color"], **_RING)
        panels[0].set(ylabel="Loss")
        panels[-1].set(xlabel="Epoch")
        entries: list[tuple[str, dict[str, Any]]] = [("training", {"color": palette.MUTED})]
        if any(math.isfinite(value) for course in courses for value in course.validation_loss):
            entries.append(("validation", {"color": palette.MUTED, "linestyle": _DASHED}))
        if with_auc:
            panels[1].set(ylabel="Validation AUC", ylim=(_lowest_auc(courses), 1.0))
            entries.append(("kept", {"color": palette.MUTED, **_RING}))
        if len(courses) > 1:
            entries += [(course.label, {"color": palette.site_colour(index)}) for index, course in enumerate(courses)]
        _legend(figure, entries)
        _save(figure, path)


def write_reliability(path: Path, bins: Sequence[CalibrationBin], note: str) -> None:
    """Draw accuracy against confidence of the top class, and below how many slides there are, as .svg and .png.

    Args:
        path: without an extension.
        bins: those that hold slides.
        note: a line for the legend, such as the calibration error.
    """
    from matplotlib.ticker import MaxNLocator

    with drawing():
        figure, (diagram, counts) = _panels((3.2, 0.9), whole=False)
        diagram.plot((0, 1), (0, 1), color=palette.MUTED, linewidth=0.9, linestyle=_DASHED)
        for one in bins:
            diagram.plot(
                (one.confidence,) * 2, (one.confidence, one.accuracy), color=palette.site_colour(1), linewidth=2
            )
        points = [one.confidence for one in bins], [one.accuracy for one in bins]
        diagram.plot(*points, marker="o", linestyle="none", color=palette.INK, markersize=5, clip_on=False)
        diagram.set(ylabel="Share of slides that are right", ylim=(0, 1), xlim=(0, 1))
        counts.bar(points[0], [one.slides for one in bins], width=0.03, color=palette.site_colour(0))
        counts.set(xlabel="Probability of the predicted label", ylabel="Slides")
        counts.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3, steps=[1, 2, 2.5, 5, 10]))
        dot = {"marker": "o", "linestyle": "none", "color": palette.INK, "markersize": 5}
        _legend(
            figure,
            [
                (note, dot),
                ("too sure below the diagonal, too cautious above", {"color": palette.site_colour(1), "linewidth": 2}),
            ],
            columns=1,
        )
        _save(figure, path)


def _panels(heights: tuple[float, ...], *, whole: bool) -> "tuple[Figure, tuple[Axes, ...]]":
    """Return a figure of axes, one above the other with one horizontal scale, and room for a legend below."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(_WIDTH, sum(heights) + 1.5), layout="constrained")
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=whole, nbins=10, min_n_ticks=1))
    return figure, tuple(panels)


def _lowest_auc(courses: Sequence[Course]) -> float:
    """Return where the AUC's axis begins: at 0.5, or a tenth below the lowest value."""
    values = [value for course in courses for value in course.validation_auc if math.isfinite(value)]
    return min([0.5, *(int(value * 10) / 10 for value in values)])


def _legend(figure: "Figure", entries: Sequence[tuple[str, dict[str, Any]]], columns: int = 3) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **style) for _, style in entries]
    figure.legend(handles, [label for label, _ in entries], loc="outside lower left", ncols=columns, fontsize=9)


def _save(figure: "Figure", path: Path) -> None:
    for kind, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
        content = io.BytesIO()
        figure.savefig(content, format=kind, dpi=200, metadata=metadata)
        write_bytes(path.with_suffix(f".{kind}"), content.getvalue())
