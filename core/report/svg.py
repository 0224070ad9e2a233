"""From a matplotlib figure to an SVG that can stand inside the page: same bytes for the same data, themed by CSS.

Text stays text, in the page's font. Every colour of ``palette`` is replaced by a CSS variable with the colour as
fallback, so that dark mode and print recolour the figures without drawing them twice.
"""

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fedpath.core.report import palette

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedpath",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",  # comes with matplotlib; the page's own font replaces it
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.edgecolor": palette.MUTED,
    "axes.labelcolor": palette.INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": palette.GRID,
    "grid.linewidth": 0.6,
    "text.color": palette.INK,
    "xtick.color": palette.MUTED,
    "ytick.color": palette.MUTED,
    "xtick.labelcolor": palette.INK,
    "ytick.labelcolor": palette.INK,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
}


@contextmanager
def drawing() -> Iterator[None]:
    """Draw with the report's settings, whatever matplotlibrc says; the caller's settings come back afterwards."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def to_svg(figure: "Figure", *, name: str, alt: str) -> str:
    """Return ``figure`` as an inline ``<svg>`` element. Call inside ``drawing()``.

    Args:
        figure: a figure made without pyplot.
        name: prefix of the ids inside, unique on the page.
        alt: what the figure shows, for readers who do not see it.
    """
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    drawn = stream.getvalue()
    body = drawn[drawn.index(">", drawn.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"\bxlink:href=", "href=", body)
    body = re.sub(r"\bid=\"", f'id="{name}-', body)
    body = re.sub(r"\bhref=\"#", f'href="#{name}-', body)
    body = re.sub(r"url\(#", f"url(#{name}-", body)
    for variable, colour in palette.VARIABLES.items():
        body = re.sub(rf"(fill|stroke): {colour}\b", rf"\1: var({variable}, {colour})", body)
    width, height = figure.get_size_inches() * 72
    box = f"0 0 {width:g} {height:g}"
    body = re.sub(r"\n\s*", "\n", body).strip()
    opening = f'<svg viewBox="{box}" role="img" aria-label="{html.escape(alt)}" style="max-width: {width * 1.5:.0f}px">'
    return f"{opening}\n{body}\n"
