"""JPEG tiles decoded strictly, whole or at a half, a quarter or an eighth of their size.

A JPEG stores 8×8 blocks as frequencies; leaving the high ones out gives the smaller picture for a fraction of the work.
It is nearly the area mean of the full picture: an eighth is exactly each block's mean, a half differs where there is
detail finer than two pixels. libjpeg-turbo does both.

A damaged tile is refused, as OpenSlide does: most decoders warn and show something that is not the slide.
"""

import math

import numpy as np
import simplejpeg
from numpy.typing import NDArray

SCALES = (2, 4, 8)
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


def decode(stream: bytes, height: int, width: int, scale: int = 1) -> NDArray[np.uint8]:
    """Decode a JPEG file.

    Args:
        stream: the file.
        height, width: of its picture.
        scale: 1 for all of it, or 2, 4 or 8 for a half, a quarter or an eighth of both.

    Returns:
        RGB, H/scale × W/scale × 3.

    Raises:
        ValueError: it is damaged, also where a decoder could go on and would show something else, or of another size.
    """
    shape = (height // scale, width // scale, 3)
    out_HW3 = _off_alignment(shape)
    decoded_HW3 = simplejpeg.decode_jpeg(
        stream, min_height=shape[0], min_width=shape[1], min_factor=scale, buffer=out_HW3, strict=True
    )
    if decoded_HW3.shape != shape:
        raise ValueError(f"it has {decoded_HW3.shape[1]}×{decoded_HW3.shape[0]} px")
    return out_HW3


def _off_alignment(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return an array whose memory begins 16 bytes beside a multiple of 32.

    libjpeg-turbo writes rows that begin on such a multiple past the processor's cache. Tiles are copied from at once:
    they are wanted in the cache, and decoded faster there, to the same pixels.
    """
    size = math.prod(shape)
    memory = np.empty(size + 32, np.uint8)
    start = (16 - memory.ctypes.data) % 32
    return memory[start : start + size].reshape(shape)
