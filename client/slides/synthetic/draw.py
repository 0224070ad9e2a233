"""Draw the two dyes of a slide: maps of haematoxylin and eosin, before any hospital's colours.

Shape suffixes: S pixels an edge of the square canvas, P points of an outline. Arrays are (y, x), points (x, y).
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from fedpath.client.slides.synthetic.knobs import DRAW_MPP, EDGE_UM, CaseMix, Cells, Difficulty
from fedpath.client.slides.synthetic.nuclei import (
    SHIFT,
    Outline,
    Region,
    bytes_of,
    draw_cells,
    fixed,
    inside,
    region_of,
)

SIZE = round(EDGE_UM / DRAW_MPP)
_TRACE = 9
"""Haematoxylin everywhere in tissue."""
_NEST_ROUGHNESS = 0.28
_COARSE = 8
"""Structures are placed at an eighth of the canvas."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """One slide's dyes (S×S, 255 is an optical density of 2.0) and its planted nests."""

    haematoxylin_SS: NDArray[np.uint8]
    eosin_SS: NDArray[np.uint8]
    nests: list[Outline]


@dataclass(frozen=True, slots=True)
class _Canvas:
    """The maps being drawn on, and where tissue is; all S×S."""

    haematoxylin_SS: NDArray[np.uint8]
    eosin_SS: NDArray[np.uint8]
    tissue_SS: NDArray[np.uint8]


def draw_slide(random: np.random.Generator, difficulty: Difficulty, mix: CaseMix, *, positive: bool) -> Drawing:
    """Draw tissue on glass; nests only where ``positive``."""
    tissue_SS = _filled(_pieces(random))
    canvas = _stroma(random, tissue_SS)
    draw_cells(canvas.haematoxylin_SS, random, difficulty.stroma, inside(tissue_SS))
    room = _Room(tissue_SS)
    for radius in _radii(random, mix.glands, difficulty.gland_radius_um):
        outline = room.place(random, radius, roughness=0.12)
        if outline is not None:
            _draw_gland(canvas, random, difficulty.glands, outline)
    for radius in _radii(random, mix.lymphoid, difficulty.lymphoid_radius_um):
        outline = room.place(random, radius, roughness=0.15)
        if outline is not None:
            _draw_mass(canvas, random, difficulty.lymphocytes, outline, cytoplasm=4, eosin=0.75)
    for radius in _radii(random, mix.hyperplasia, difficulty.hyperplasia_radius_um):
        outline = room.place(random, radius, roughness=0.2)
        if outline is not None:
            _draw_mass(canvas, random, difficulty.hyperplasia, outline, cytoplasm=10, eosin=0.9)
    nests = _nests(random, difficulty, room) if positive else []
    for outline in nests:
        _draw_mass(canvas, random, difficulty.tumour, outline, cytoplasm=14, eosin=0.9)
    # The optics blur; chromatin is grainy.
    blurred_SS = cv2.GaussianBlur(canvas.haematoxylin_SS, (3, 3), 0.8)
    grain_SS = cv2.resize(random.integers(206, 256, (SIZE // 2, SIZE // 2), np.uint8), (SIZE, SIZE))
    return Drawing(bytes_of(cv2.multiply(blurred_SS, grain_SS, scale=1 / 230)), canvas.eosin_SS, nests)


def _nests(random: np.random.Generator, difficulty: Difficulty, room: "_Room") -> list[Outline]:
    """Outline the nests of a positive slide: at least one, even where harmless structures leave no room."""
    smallest = difficulty.nest_radius_um[0] / DRAW_MPP
    radii = _radii(random, difficulty.nests, difficulty.nest_radius_um)
    if random.random() < difficulty.small_share:
        radii = np.array([1.1 * smallest])
    placed = [room.place(random, radius, roughness=_NEST_ROUGHNESS) for radius in radii]
    return [nest for nest in placed if nest is not None] or [
        _outline(random, room.deepest(), smallest, _NEST_ROUGHNESS)
    ]


def _pieces(random: np.random.Generator) -> list[Outline]:
    """One large or two smaller pieces of tissue."""
    if random.random() < 0.6:
        centre = SIZE * random.uniform(0.45, 0.55, 2)
        return [_outline(random, centre, SIZE * random.uniform(0.36, 0.42), 0.17, points=180)]
    turn = random.uniform(0, np.pi)
    away = SIZE * 0.22 * np.array([np.cos(turn), np.sin(turn)])
    middle = np.full(2, SIZE / 2)
    return [
        _outline(random, middle + side * away, SIZE * random.uniform(0.22, 0.28), 0.17, points=180) for side in (-1, 1)
    ]


def _outline(
    random: np.random.Generator, centre: NDArray[np.float64], radius: float, roughness: float, points: int = 48
) -> Outline:
    """A closed irregular outline: a circle whose radius varies by a few random harmonics."""
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    harmonics = np.arange(2, 9)
    amplitudes = roughness * random.normal(size=len(harmonics)) / harmonics**0.8
    waves = np.cos(harmonics * angles[:, None] + random.uniform(0, 2 * np.pi, len(harmonics)))
    radii = radius * np.clip(1 + waves @ amplitudes, 0.45, 1.6)
    outline = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.asarray(np.clip(outline, 2.0, SIZE - 3.0), np.float64)


def _filled(outlines: list[Outline]) -> NDArray[np.uint8]:
    """Return 255 inside any of the outlines."""
    mask_SS = np.zeros((SIZE, SIZE), np.uint8)
    for outline in outlines:
        cv2.fillPoly(mask_SS, [fixed(outline)], 255, lineType=cv2.LINE_AA, shift=SHIFT)
    return mask_SS


def _stroma(random: np.random.Generator, tissue_SS: NDArray[np.uint8]) -> _Canvas:
    """Wavy eosinophilic fibres of uneven thickness with gaps between them; a trace of haematoxylin."""
    coarse = 512
    broad = cv2.resize(random.normal(size=(9, 9)).astype(np.float32), (coarse, coarse), interpolation=cv2.INTER_CUBIC)
    fine = cv2.resize(random.normal(size=(48, 48)).astype(np.float32), (coarse, coarse), interpolation=cv2.INTER_CUBIC)
    turn, pitch = random.uniform(0, np.pi), random.uniform(10, 16)
    y, x = np.mgrid[:coarse, :coarse].astype(np.float32)
    phase = (x * np.cos(turn) + y * np.sin(turn)) * (2 * np.pi / pitch) + 7 * broad + 1.1 * fine
    eosin = 62 + 13 * np.sin(phase, dtype=np.float32) + 11 * broad + 7 * fine
    eosin_SS = cv2.resize(eosin.clip(12, 140).astype(np.uint8), (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    grain_SS = cv2.resize(random.integers(200, 256, (SIZE // 2, SIZE // 2), np.uint8), (SIZE, SIZE))
    grainy_SS = cv2.multiply(eosin_SS, grain_SS, scale=1 / 228)
    haematoxylin_SS = cv2.multiply(tissue_SS, np.full_like(tissue_SS, _TRACE), scale=1 / 255)
    stained_SS = cv2.multiply(grainy_SS, tissue_SS, scale=1 / 255)
    return _Canvas(bytes_of(haematoxylin_SS), bytes_of(stained_SS), tissue_SS)


def _radii(random: np.random.Generator, number: tuple[int, int], radius_um: tuple[float, float]) -> NDArray[np.float64]:
    """Draw how many structures there are and their radii in pixels, small ones more often."""
    low, high = radius_um
    share = random.uniform(0, 1, random.integers(number[0], number[1] + 1)) ** 1.5
    return (low + (high - low) * share) / DRAW_MPP


class _Room:
    """Where in the tissue there is room for another structure, at an eighth of the canvas."""

    def __init__(self, tissue_SS: NDArray[np.uint8]) -> None:
        small = cv2.resize(tissue_SS, None, fx=1 / _COARSE, fy=1 / _COARSE)
        self._depth = cv2.distanceTransform(small, cv2.DIST_L2, 3)
        self._taken = np.zeros(self._depth.shape, np.uint8)

    def place(self, random: np.random.Generator, radius: float, roughness: float) -> Outline | None:
        """Place an outline inside the tissue, off every earlier one; None if there is no room left."""
        reach = radius / _COARSE
        edge = 2 * round(reach) + 1
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (edge, edge))
        rows, columns = np.nonzero((self._depth > 0.8 * reach) & (cv2.dilate(self._taken, disc) == 0))
        if not len(rows):
            return None
        chosen = random.integers(len(rows))
        column, row = int(columns[chosen]), int(rows[chosen])
        cv2.circle(self._taken, (column, row), round(1.25 * reach), 1, -1)
        return _outline(random, _centre(column, row), radius, roughness)

    def deepest(self) -> NDArray[np.float64]:
        """Return the point farthest from the tissue's border."""
        row, column = np.unravel_index(int(self._depth.argmax()), self._depth.shape)
        return _centre(int(column), int(row))


def _centre(column: int, row: int) -> NDArray[np.float64]:
    """Return the middle of a coarse pixel on the canvas."""
    return np.array([column + 0.5, row + 0.5]) * _COARSE


def _draw_mass(
    canvas: _Canvas, random: np.random.Generator, cells: Cells, outline: Outline, *, cytoplasm: int, eosin: float
) -> None:
    """Fill an outline with cells: ``cytoplasm`` adds haematoxylin between nuclei, ``eosin`` scales the eosin."""
    region = region_of(outline)
    height, width = region.mask.shape
    place = np.s_[region.top : region.top + height, region.left : region.left + width]
    # Glass stays glass where an outline reaches beyond the tissue.
    mask = np.minimum(region.mask, canvas.tissue_SS[place])
    share = cv2.GaussianBlur(mask, (9, 9), 0).astype(np.float32) / 255
    under, beside = canvas.haematoxylin_SS[place], canvas.eosin_SS[place]
    canvas.haematoxylin_SS[place] = np.rint(under * (1 - share) + (_TRACE + cytoplasm) * share)
    canvas.eosin_SS[place] = np.rint(beside * (1 - (1 - eosin) * share))
    draw_cells(canvas.haematoxylin_SS, random, cells, Region(region.left, region.top, mask))


def _draw_gland(canvas: _Canvas, random: np.random.Generator, cells: Cells, outline: Outline) -> None:
    """A benign gland: a rim of regular nuclei around an empty lumen."""
    _draw_mass(canvas, random, cells, outline, cytoplasm=6, eosin=0.8)
    lumen = outline.mean(axis=0) + (outline - outline.mean(axis=0)) * random.uniform(0.4, 0.62)
    for map_SS in (canvas.haematoxylin_SS, canvas.eosin_SS):
        cv2.fillPoly(map_SS, [fixed(lumen)], int(random.integers(0, 12)), lineType=cv2.LINE_AA, shift=SHIFT)
