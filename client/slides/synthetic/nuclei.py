"""Strew nuclei over a region of the canvas.

Shape suffixes: S pixels an edge of the square canvas, M nuclei, P points of an outline. Arrays are (y, x), points
(x, y), both in pixels of the canvas.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fedpath.client.slides.synthetic.knobs import DRAW_MPP, Cells

SHIFT = 4
"""cv2 draws with coordinates in sixteenths of a pixel."""

Outline = NDArray[np.float64]
"""P×2, a closed outline."""


def bytes_of(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Return an image as 8-bit, without a copy if it is."""
    return np.asarray(image, np.uint8)


def fixed(points: NDArray[np.float64]) -> NDArray[np.int32]:
    """Return coordinates as cv2 takes them."""
    return np.rint(points * (1 << SHIFT)).astype(np.int32)


@dataclass(frozen=True, slots=True)
class Region:
    """A mask and the part of the canvas it lies in."""

    left: int
    top: int
    mask: NDArray[np.uint8]


def inside(mask_SS: NDArray[np.uint8]) -> Region:
    """Return a mask of the whole canvas as a region."""
    return Region(0, 0, mask_SS)


def region_of(outline: Outline) -> Region:
    """Return the inside of an outline."""
    left, top = np.floor(outline.min(axis=0)).astype(int) - 1
    width, height = np.ceil(outline.max(axis=0)).astype(int) + 2 - (left, top)
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [fixed(outline - (left, top))], 255, lineType=cv2.LINE_AA, shift=SHIFT)
    return Region(int(left), int(top), mask)


def draw_cells(canvas_SS: NDArray[np.uint8], random: np.random.Generator, cells: Cells, region: Region) -> None:
    """Strew nuclei over a region: a jittered hexagonal lattice, so that they crowd without piling up."""
    spacing = np.sqrt(2 / (np.sqrt(3) * cells.per_mm2)) * 1000 / DRAW_MPP
    height, width = region.mask.shape
    rows = np.arange(spacing / 2, height, spacing * np.sqrt(3) / 2)
    columns = np.arange(spacing / 2, width, spacing)
    x = columns[None, :] + np.where(np.arange(len(rows)) % 2, spacing / 2, 0)[:, None]
    y = np.broadcast_to(rows[:, None], x.shape)
    places_M2 = np.stack([x.ravel(), y.ravel()], axis=1)
    places_M2 = places_M2 + random.normal(scale=0.22 * spacing, size=places_M2.shape)
    column, row = np.rint(places_M2).astype(int).T
    on = (column >= 0) & (row >= 0) & (column < width) & (row < height)
    on[on] = region.mask[row[on], column[on]] > 127
    places_M2 = places_M2[on] + (region.left, region.top)
    _draw_nuclei(canvas_SS, random, cells, places_M2)


def _draw_nuclei(
    canvas_SS: NDArray[np.uint8], random: np.random.Generator, cells: Cells, places_M2: NDArray[np.float64]
) -> None:
    """Draw ellipses of the population's sizes and shades."""
    number = len(places_M2)
    radii = random.uniform(*cells.radius_um, number) / DRAW_MPP
    stretch = np.sqrt(random.uniform(*cells.elongation, number))
    axes_M2 = fixed(np.stack([radii * stretch, radii / stretch], axis=1))
    # A common direction with scatter: fibroblasts lie along the fibres.
    angles = random.uniform(0, 180) + random.normal(scale=40, size=number)
    shades = random.integers(cells.darkness[0], cells.darkness[1] + 1, number)
    centres_M2 = fixed(places_M2)
    for centre, axes, angle, shade in zip(
        centres_M2.tolist(), axes_M2.tolist(), angles.tolist(), shades.tolist(), strict=True
    ):
        cv2.ellipse(canvas_SS, centre, axes, angle, 0, 360, shade, -1, cv2.LINE_8, SHIFT)
        if cells.vesicular:
            inner = (axes[0] * 2 // 3, axes[1] * 2 // 3)
            cv2.ellipse(canvas_SS, centre, inner, angle, 0, 360, shade * 3 // 4, -1, cv2.LINE_8, SHIFT)
            cv2.circle(canvas_SS, centre, max(axes[1] // 4, 1), min(shade + 35, 255), -1, cv2.LINE_8, SHIFT)
