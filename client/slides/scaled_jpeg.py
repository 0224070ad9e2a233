"""JPEG tiles decoded at a half, a quarter or an eighth of their size.

A JPEG stores 8×8 blocks as frequencies; leaving the high ones out gives the smaller picture for a fraction of the work.
It is nearly the area mean of the full picture: an eighth is exactly each block's mean, a half differs where there is
detail finer than two pixels. libjpeg does it, by way of OpenCV.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

SCALES = (2, 4, 8)
_FLAGS = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
_START = b"\xff\xd8"
_END = b"\xff\xd9"


def whole_stream(tile: bytes, tables: bytes | None, *, rgb: bool) -> bytes:
    """Return a tile of a TIFF as a JPEG file that any decoder reads with the right colours.

    Args:
        tile: as stored, perhaps without tables.
        tables: the TIFF's common tables (a JPEG without picture), if it has any.
        rgb: the components are red, green and blue; otherwise luminance and two colour differences. The TIFF says so,
            the stream itself does not: decoders would take RGB for differences.
    """
    # Adobe's segment is what tells decoders which colours these are: version, two flags, then 0 for RGB, 1 for YCbCr.
    colours = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + (b"\x00" if rgb else b"\x01")
    common = tables.removeprefix(_START).removesuffix(_END) if tables else b""
    return _START + colours + common + tile.removeprefix(_START)


def decode_scaled(stream: bytes, scale: int) -> NDArray[np.uint8]:
    """Decode a JPEG file at 1/``scale`` of its size (2, 4 or 8); return H × W × 3, RGB.

    Raises:
        ValueError: it cannot be decoded.
    """
    flags = _FLAGS[scale] | cv2.IMREAD_IGNORE_ORIENTATION
    bgr_HW3 = cv2.imdecode(np.frombuffer(stream, np.uint8), flags)
    if bgr_HW3 is None:
        raise ValueError("not a whole JPEG")
    return cv2.cvtColor(bgr_HW3, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
