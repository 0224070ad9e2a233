"""Histograms as SVG inside a page: text stays text, colours are the page's own."""

from collections import Counter
from collections.abc import Callable, Sequence
from html import escape

import numpy as np

_WIDTH, _HEIGHT = 460, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 10, 14, 40
_MOST_BARS = 12
Figure = tuple[str, str, str]
"""Title, SVG, caption."""


def histogram(values: Sequence[float], *, title: str, unit: str, caption: Callable[[list[float]], str]) -> Figure:
    """Draw how many slides have how much of something, in bars of equal width with round borders.

    Args:
        values: one a slide.
        title: of the figure.
        unit: below the axis.
        caption: makes the sentence below from the values.
    """
    numbers = [float(value) for value in values]
    low, high = min(numbers), max(numbers)
    step = _round_step((high - low) / _MOST_BARS)
    first = int(low // step)
    count = int(high // step) - first + 1
    edges = [step * (first + index) for index in range(count + 1)]
    heights = Counter(int(value // step) - first for value in numbers)
    bars = [(f"{edges[i]:,.0f} to {edges[i + 1]:,.0f}", heights[i]) for i in range(count)]
    every = -(-(count + 1) // 7)
    ticks = [(float(i), f"{edges[i]:,.0f}") for i in range(0, count + 1, every)]
    return title, _svg(bars, ticks, title, unit), caption(numbers)


def resolutions(mpps: Sequence[float]) -> Figure:
    """Draw how many slides have which µm/px at level 0; with many resolutions, near ones share a bar."""
    for digits in (4, 3, 2, 1):
        counts = Counter(round(mpp, digits) for mpp in mpps)
        if len(counts) <= _MOST_BARS:
            break
    names = sorted(counts)
    bars = [(f"{name:g} µm/px", counts[name]) for name in names]
    ticks = [(index + 0.5, f"{name:g}") for index, name in enumerate(names)]
    single = len(names) == 1
    caption = f"All slides: {names[0]:g}." if single else f"{len(names)} resolutions: {names[0]:g} to {names[-1]:g}."
    title = "Resolution of level 0"
    return title, _svg(bars, ticks, title, "µm/px"), caption + " Patches are cut at one resolution all the same."


def _round_step(least: float) -> float:
    """Return the smallest of 1, 2, 5, 10, 20, … that is at least ``least``."""
    scale = 10.0 ** np.floor(np.log10(max(least, 1)))
    return float(next(scale * factor for factor in (1, 2, 5, 10) if scale * factor >= least))


def _svg(bars: list[tuple[str, int]], ticks: list[tuple[float, str]], title: str, unit: str) -> str:
    """Draw bars side by side; ticks lie at a number of bars from the left."""
    right, base = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    most = max(height for _, height in bars)
    step = _round_step(most / 4)
    top = step * -(-most // step)
    # A lone bar is as wide as one among five.
    slot = (right - _LEFT) / max(len(bars), 5)

    def y(count: float) -> float:
        return base - (base - _TOP) * count / top

    said = "; ".join(f"{name}: {count}" for name, count in bars if count)
    parts = [
        f'<svg class="histogram" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}, slides by '
        f'{escape(unit)}. {escape(said)}">'
    ]
    for count in np.arange(0, top + step / 2, step):
        parts.append(f'<line class="rule" x1="{_LEFT}" x2="{right}" y1="{y(count):.1f}" y2="{y(count):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(count) + 4:.1f}" text-anchor="end">{count:g}</text>')
    for index, (name, count) in enumerate(bars):
        x, height = _LEFT + index * slot + 1.5, base - y(count)
        parts.append(
            f'<rect class="bar" x="{x:.1f}" y="{y(count):.1f}" width="{slot - 3:.1f}" height="{height:.1f}">'
            f"<title>{escape(name)}: {count}</title></rect>"
        )
    for at, name in ticks:
        parts.append(f'<text x="{_LEFT + at * slot:.1f}" y="{base + 16}" text-anchor="middle">{escape(name)}</text>')
    parts.append(f'<text class="axis" x="{right}" y="{_HEIGHT - 6}" text-anchor="end">{escape(unit)}</text>')
    parts.append(f'<text class="axis" x="{_LEFT}" y="{_TOP - 4}">slides</text></svg>')
    return "".join(parts)
