"""How the studies' pictures look: the report's colours, a light frame, the same bytes for the same data."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fedpath.core.report import palette

BLUE, ORANGE, GREEN = palette.SITES[:3]
_SETTINGS: dict[Any, Any] = {
    "axes.edgecolor": palette.MUTED,
    "axes.grid": True,
    "axes.labelcolor": palette.INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "figure.dpi": 100,
    "font.size": 9.5,
    "grid.color": palette.GRID,
    "legend.frameon": False,
    "svg.hashsalt": "fedpath",
    "text.color": palette.INK,
    "xtick.color": palette.MUTED,
    "ytick.color": palette.MUTED,
}


def panels(count: int, *, width: float, height: float, title: str, source: str) -> tuple[Figure, list[Axes]]:
    """Return a figure of ``count`` panels side by side under a title, with a line below that says where it is from."""
    matplotlib.rcParams.update(_SETTINGS)
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12.5, fontweight="bold")
    figure.supxlabel(source, x=0.01, ha="left", fontsize=8, color=palette.MUTED)
    axes = figure.subplots(1, count, squeeze=False)[0]
    return figure, list(axes)


def log_ticks(axis: Any, values: list[float], unit: str = "") -> None:
    """Label a logarithmic axis at these values only, in plain numbers."""
    axis.set_major_locator(FixedLocator(values))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}{unit}".replace(",", " ")))


def save(figure: Figure, path: Path) -> None:
    """Write the picture in the format that the suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)
    print(f"wrote {path}")
