"""Exact area resampling: each output pixel is the mean of the slide over the square it covers, fractions included.

cv2's INTER_AREA does this for windows with whole-pixel borders, and fast; it is used for those. Patches of a scanner
with 0.325 µm/px cut at 0.5 µm/px are 196.92 pixels wide: rounding that to 197 would change the scale by up to half a
pixel a patch, differently for every scanner.
"""

import cv2
import numpy as np
from numpy.typing import NDArray


def area_mean(image_HWC: NDArray[np.uint8], top: float, left: float, span: float, size: int) -> NDArray[np.uint8]:
    """Resample the square window at (left, top) with edge ``span`` to ``size`` × ``size`` pixels.

    Args:
        image_HWC: the pixels, C colours; must cover the window.
        top: upper border of the window in image pixels, may be fractional.
        left: left border.
        span: edge of the window in image pixels, may be fractional.
        size: edge of the result in pixels.

    Returns:
        size × size × C, rounded to nearest.
    """
    y, x, edge = round(top), round(left), round(span)
    if (top, left, span) == (y, x, edge):
        window_HWC = image_HWC[y : y + edge, x : x + edge]
        if edge == size:
            return np.ascontiguousarray(window_HWC)
        # For shrinking only: where it would enlarge, INTER_AREA interpolates.
        if edge > size:
            return cv2.resize(window_HWC, (size, size), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    height, width, colours = image_HWC.shape
    # Separable: rows in one product for all colours, then columns colour by colour, which is how matrices lie best.
    rows_SH, columns_WS = _weights(top, span, size, height), _weights(left, span, size, width).T
    pixels = image_HWC.reshape(height, width * colours).astype(np.float32)
    halfway_SWC = (rows_SH @ pixels).reshape(size, width, colours)
    # convertScaleAbs rounds to nearest and saturates in one pass.
    planes = [cv2.convertScaleAbs(plane_SW @ columns_WS) for plane_SW in cv2.split(halfway_SWC)]
    return cv2.merge(planes).astype(np.uint8, copy=False)


def _weights(start: float, span: float, size: int, length: int) -> NDArray[np.float32]:
    """Return size × length weights: the share of input pixel j in output pixel i, rows summing to 1."""
    edges = start + span * np.arange(size + 1) / size
    pixels = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.asarray(overlap.clip(min=0) * (size / span), dtype=np.float32)
