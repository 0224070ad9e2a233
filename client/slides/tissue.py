"""Find tissue on an overview of 8 µm/px: Otsu's threshold on colour saturation, held within bounds.

Unbounded, Otsu loses pale tissue whenever something stronger (a pen mark, a dark fold, one intense fragment) is on
the glass: it then separates that from everything else. So the threshold may not exceed what the palest stain shows, nor
fall into the noise of clean glass, and a slide on which saturation finds nothing is searched for anything darker than
glass.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from fedpath.client.slides.reader import Slide, UnreadableError

OVERVIEW_MPP = 8.0
_BLOCK, _AT_ONCE = 128, 4096
"""Edge of the blocks an overview is read in, in its own pixels and at most in the slide's: 50 MB without a pyramid."""
_LOWEST, _HIGHEST = 7, 12
"""Bounds of the saturation threshold, of 255: JPEG noise of clean glass stays below 5, thin eosin is above 12."""
_ENOUGH = 24
"""All saturation above counts alike: how strong the strongest is says nothing about where glass ends."""
_DARKER = 10
"""Fallback: tissue is at least this much darker than glass, of 255."""
_LEAST_SHARE = 0.001
_BLACK = 40
"""No stain leaves less light in every colour: scanners paint borders black, and noise there is saturated."""
METHOD = (
    f"saturation (to {_ENOUGH}) otsu {_LOWEST}-{_HIGHEST} at {OVERVIEW_MPP:g} um/px, else darker by {_DARKER}; "
    f"not black (to {_BLACK})"
)


@dataclass(frozen=True, slots=True)
class Tissue:
    """Where tissue is: one boolean a pixel of the overview."""

    mask_HW: NDArray[np.bool_]
    mpp: float
    """µm/px of the mask."""
    overview_HW3: NDArray[np.uint8] | None = None
    """The slide in RGB that tissue was looked for on, where it was."""

    @property
    def area_mm2(self) -> float:
        """Area of tissue in mm²."""
        return float(self.mask_HW.sum()) * (self.mpp / 1000) ** 2

    def shares(self, xs: NDArray[np.int64], ys: NDArray[np.int64], edge: int, mpp_level0: float) -> NDArray[np.float64]:
        """Return the share of tissue in each square with corner (x, y) and edge ``edge``, in level-0 pixels."""
        sums = cv2.integral(self.mask_HW.astype(np.uint8))
        height, width = self.mask_HW.shape
        scale = mpp_level0 / self.mpp

        def borders(start: NDArray[np.int64], limit: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
            low = np.clip(np.rint(start * scale).astype(np.int64), 0, limit - 1)
            high = np.clip(np.rint((start + edge) * scale).astype(np.int64), low + 1, limit)
            return low, high

        (left, right), (top, bottom) = borders(xs, width), borders(ys, height)
        inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
        shares: NDArray[np.float64] = inside / ((bottom - top) * (right - left))
        return shares


def find_tissue(slide: Slide) -> Tissue:
    """Find tissue on a slide.

    Unreadable regions count as tissue: their patches are then tried, fail, and are reported instead of vanishing.
    """
    mpp = slide.whole_mpp(OVERVIEW_MPP)
    overview_HW3, unreadable_HW = read_overview(slide, mpp)
    return Tissue(segment(overview_HW3) | unreadable_HW, mpp, overview_HW3)


def read_overview(slide: Slide, mpp: float) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Read the whole slide at ``mpp``, block by block.

    Returns:
        RGB (H×W×3), and where it could not be read (H×W).
    """
    scale = mpp / slide.mpp
    height, width = max(1, round(slide.height / scale)), max(1, round(slide.width / scale))
    overview_HW3 = np.full((height, width, 3), 255, np.uint8)
    unreadable_HW = np.zeros((height, width), np.bool_)
    edge = int(np.clip(_AT_ONCE * slide.levels[slide.level_for(mpp)].mpp / mpp, 1, _BLOCK))
    for top in range(0, height, edge):
        for left in range(0, width, edge):
            place = np.s_[top : top + edge, left : left + edge]
            shape = unreadable_HW[place].shape
            try:
                block = slide.read(round(left * scale), round(top * scale), mpp=mpp, size=edge)
            except UnreadableError:
                unreadable_HW[place] = True
            else:
                overview_HW3[place] = block[: shape[0], : shape[1]]
    return overview_HW3, unreadable_HW


def segment(overview_HW3: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return where an RGB overview shows tissue (H×W)."""
    glass = _glass(overview_HW3)
    # Scanners see glass slightly tinted; relative to it, clean glass has no saturation.
    levelled_HW3 = np.rint(np.minimum(overview_HW3 * (255 / glass), 255)).astype(np.uint8)
    # A pixel wider than what is black: its rim is blurred into glass.
    black_HW = cv2.dilate((overview_HW3.max(axis=2) < _BLACK).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    saturation_HW = cv2.medianBlur(cv2.cvtColor(levelled_HW3, cv2.COLOR_RGB2HSV)[..., 1], 5)
    otsu, _ = cv2.threshold(np.minimum(saturation_HW, _ENOUGH), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    mask_HW = (saturation_HW > np.clip(otsu, _LOWEST, _HIGHEST)) & ~black_HW
    if mask_HW.mean() < _LEAST_SHARE:
        grey_HW = cv2.medianBlur(cv2.cvtColor(levelled_HW3, cv2.COLOR_RGB2GRAY), 5)
        mask_HW = (grey_HW < 255 - _DARKER) & ~black_HW
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    opened = cv2.morphologyEx(mask_HW.astype(np.uint8), cv2.MORPH_OPEN, ellipse)
    closed = cv2.morphologyEx(opened, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7)))
    found: NDArray[np.bool_] = closed.astype(np.bool_)
    return found


def _glass(overview_HW3: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the colour of clean glass: the median of the brightest twentieth, if that is bright enough to be glass."""
    pixels_P3 = overview_HW3.reshape(-1, 3)
    darkest_colour = pixels_P3.min(axis=1)
    brightest_P3 = pixels_P3[darkest_colour >= np.quantile(darkest_colour, 0.95)]
    colour: NDArray[np.float64] = np.median(brightest_P3, axis=0)
    # A slide full of tissue shows no glass; taking its palest tissue for glass would erase it.
    return colour if colour.min() > 215 else np.full(3, 255.0)
