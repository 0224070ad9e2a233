"""A small picture of a slide, to be judged at a glance: what was taken for tissue and which patches were kept."""

import cv2
import numpy as np
from numpy.typing import NDArray

from fedpath.client.slides.reader import Slide
from fedpath.client.slides.tiles import TileGrid
from fedpath.client.slides.tissue import Tissue, read_overview

EDGE = 400
"""Longer edge in pixels."""
_QUALITY = 80
_CONTOUR = (0, 92, 60)
"""Green: in no usual stain. It lies on a white line, so that it shows on dark tissue too."""
_PATCH = (0, 114, 178)
_PATCH_SHARE = 0.22


def thumbnail(
    slide: Slide, tissue: Tissue, grid: TileGrid, corners_N2: NDArray[np.int64], *, edge: int = EDGE
) -> bytes:
    """Draw a slide with the contour of its tissue, and the patches that were kept tinted blue.

    Args:
        slide: the open slide; read only if ``tissue`` carries no overview of it that is large enough.
        tissue: where its tissue is.
        grid: says how large a patch is.
        corners_N2: top-left corners of the patches that were kept, level-0 pixels.
        edge: the picture's longer edge in pixels.

    Returns:
        A JPEG; the same input gives the same bytes.
    """
    picture_HW3 = picture_of(slide, tissue, edge)
    height, width = picture_HW3.shape[:2]
    scale = np.array([width / slide.width, height / slide.height])
    picture_HW3 = _tinted(picture_HW3, corners_N2 * scale, grid.patch_size_level0 * scale)
    draw_contours(picture_HW3, tissue)
    return jpeg(picture_HW3, _QUALITY)


def picture_of(slide: Slide, tissue: Tissue, edge: int) -> NDArray[np.uint8]:
    """Return the whole slide in RGB, its longer edge ``edge`` pixels, or less if the slide is smaller."""
    overview_HW3 = tissue.overview_HW3
    # A slide of which the overview is too small is small itself: soon read once more.
    if overview_HW3 is None or max(overview_HW3.shape) < edge:
        mpp = slide.mpp * max(1.0, max(slide.width, slide.height) / edge)
        overview_HW3, _ = read_overview(slide, slide.whole_mpp(mpp / 1.5))
    scale = min(1.0, edge / max(overview_HW3.shape))
    size = max(1, round(overview_HW3.shape[1] * scale)), max(1, round(overview_HW3.shape[0] * scale))
    return np.ascontiguousarray(cv2.resize(overview_HW3, size, interpolation=cv2.INTER_AREA), np.uint8)


def draw_contours(picture_HW3: NDArray[np.uint8], tissue: Tissue, *, thickness: int = 1) -> None:
    """Draw the borders of tissue into an RGB picture of the whole slide."""
    height, width = picture_HW3.shape[:2]
    mask_HW = cv2.resize(tissue.mask_HW.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) >= 0.5
    contours, _ = cv2.findContours(mask_HW.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture_HW3, contours, -1, (255, 255, 255), thickness + 2, cv2.LINE_AA)
    cv2.drawContours(picture_HW3, contours, -1, _CONTOUR, thickness, cv2.LINE_AA)


def jpeg(picture_HW3: NDArray[np.uint8], quality: int) -> bytes:
    """Return an RGB picture as JPEG."""
    _, stream = cv2.imencode(".jpg", cv2.cvtColor(picture_HW3, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return bytes(stream)


def _tinted(
    picture_HW3: NDArray[np.uint8], starts_N2: NDArray[np.float64], size_2: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Return the picture with patches tinted; starts and size in its pixels, x before y."""
    kept_HW = np.zeros(picture_HW3.shape[:2], np.bool_)
    from_N2, to_N2 = np.rint(starts_N2).astype(int), np.rint(starts_N2 + size_2).astype(int)
    for (left, top), (right, bottom) in zip(from_N2, np.maximum(to_N2, from_N2 + 1), strict=True):
        kept_HW[top:bottom, left:right] = True
    tinted_HW3 = np.rint(picture_HW3 * (1 - _PATCH_SHARE) + np.array(_PATCH) * _PATCH_SHARE).astype(np.uint8)
    return np.where(kept_HW[..., None], tinted_HW3, picture_HW3)
