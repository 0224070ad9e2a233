"""A weighted sum of numbers that lie in files, read and added by one compiled loop without the GIL.

What it saves beside reading with `os.preadv` and adding with torch: a piece is small enough to be in the core's nearest
cache when it is added, which calls from Python are too dear for; and other threads have the interpreter meanwhile.

Compiled once a process, at the first use, as `fedpath.server.aggregation.kernels` is.
"""

import ctypes
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fedpath.core.exchange.stored import F32

I64 = NDArray[np.int64]

PIECE = 1 << 14
"""Elements that are read at a time."""

_pread = ctypes.CDLL(None).pread
_pread.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64)
_pread.restype = ctypes.c_ssize_t


@njit(nogil=True)
def read(file: int, offset: int, out: F32) -> Any:
    """Fill ``out`` from a file; return whether it could be."""
    done, size = 0, 4 * out.size
    while done < size:
        got = _pread(file, out.ctypes.data + done, size - done, offset + done)
        if got <= 0:
            return False
        done += got
    return True


@njit(nogil=True)
def _scale(values: F32, share: np.float32, sums: F32) -> None:
    for k in range(sums.size):
        sums[k] = share * values[k]


# One rounding for a product and its sum ("contract"), as torch's vector units do it.
@njit(nogil=True, fastmath={"contract"})
def _add(values: F32, share: np.float32, sums: F32) -> None:
    for k in range(sums.size):
        sums[k] += share * values[k]


@njit(nogil=True, fastmath={"contract"})
def _add_four(a: F32, b: F32, c: F32, d: F32, shares_4: F32, sums: F32) -> None:
    """As `_add` four times; the sums are read and written once."""
    of_a, of_b, of_c, of_d = shares_4[0], shares_4[1], shares_4[2], shares_4[3]
    for k in range(sums.size):
        sums[k] = (((sums[k] + of_a * a[k]) + of_b * b[k]) + of_c * c[k]) + of_d * d[k]


@njit(nogil=True)
def weighted_sum(files_N: I64, offsets_N: I64, shares_N: F32, out: F32) -> Any:
    """Write Σ share · values to ``out``, added in the order of the files.

    Args:
        files_N: descriptors.
        offsets_N: bytes before the first of the float32 numbers that are wanted; there are as many as in ``out``.
        shares_N: what each file's numbers are multiplied by.
        out: the sums.

    Returns:
        Whether all could be read; ``out`` is not to be used otherwise.
    """
    # Four arrays and not one of four rows: so the compiler can tell that they do not overlap.
    a, b = np.empty(PIECE, np.float32), np.empty(PIECE, np.float32)
    c, d = np.empty(PIECE, np.float32), np.empty(PIECE, np.float32)
    fours = 1 + (files_N.size - 1) // 4 * 4
    for start in range(0, out.size, PIECE):
        sums = out[start : start + PIECE]
        rows = (a[: sums.size], b[: sums.size], c[: sums.size], d[: sums.size])
        there = read(files_N[0], offsets_N[0] + 4 * start, rows[0])
        _scale(rows[0], shares_N[0], sums)
        for n in range(1, fours, 4):
            for k in range(4):
                there &= read(files_N[n + k], offsets_N[n + k] + 4 * start, rows[k])
            _add_four(rows[0], rows[1], rows[2], rows[3], shares_N[n : n + 4], sums)
        for n in range(fours, files_N.size):
            there &= read(files_N[n], offsets_N[n] + 4 * start, rows[0])
            _add(rows[0], shares_N[n], sums)
        if not there:
            return False
    return True
