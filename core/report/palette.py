"""Colours of the figures: distinguishable with every common colour blindness, on white, on dark and in print.

The hospitals' colours are those of Okabe and Ito (2008) without yellow, which vanishes on paper; the variants for dark
backgrounds keep the hues. Dashes repeat the distinction for black-and-white print.
"""

INK = "#1b1f24"
MUTED = "#5c6670"
GRID = "#e1e5e9"
PAPER = "#ffffff"
SITES = ("#0072b2", "#d55e00", "#009e73", "#b0578d", "#b07d00", "#2f9fd8", "#7a5195")

DASHES: tuple[tuple[float, tuple[float, ...]], ...] = ((0, ()), (0, (5, 1.5)), (0, (2, 1.2)), (0, (6, 1.5, 1.5, 1.5)))

VARIABLES = {
    "--ink": INK,
    "--muted": MUTED,
    "--grid": GRID,
    "--paper": PAPER,
    **{f"--site-{index}": colour for index, colour in enumerate(SITES)},
}
"""CSS variable by name, with the colour it stands for in the figures; report.css gives the dark values."""


def site_colour(index: int) -> str:
    """Return the colour of the hospital at ``index`` in the report's order."""
    return SITES[index % len(SITES)]


def site_dashes(index: int) -> tuple[float, tuple[float, ...]]:
    """Return its dash pattern (offset, lengths in line widths)."""
    return DASHES[index % len(DASHES)]
