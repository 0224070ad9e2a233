"""The loops over coordinates, compiled by numba: they work in place on a block of all updates, without the GIL.

A block is gone through in tiles, so that what one comparison writes is in the processor's nearest cache for the next;
within a tile the loops run along the rows, which compilers turn into vector instructions. None of them knows NaN or
infinity: updates with such values were refused when they came.

Compiled once a process, at the first use, in one or two seconds. Nothing is cached on disk: a cache would want a folder
that can be written to, and a full disk would end a round.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_TILE = 512
"""Columns of a tile."""
_TINY, _HUGE = 1e-30, 3e38
"""Sums of squares outside of these are not to be trusted in float32."""


@njit(nogil=True, error_model="numpy")
def _put_in_order(values_NM: F32, start: int, stop: int, comparisons: I64) -> None:
    """Run a sorting network over the rows of a tile."""
    for c in range(comparisons.shape[0]):
        low, high = values_NM[comparisons[c, 0], start:stop], values_NM[comparisons[c, 1], start:stop]
        what = comparisons[c, 2]
        if what == 0:
            for k in range(low.size):
                a, b = low[k], high[k]
                low[k] = a if a < b else b
                high[k] = b if a < b else a
        elif what == 1:
            for k in range(low.size):
                a, b = low[k], high[k]
                low[k] = a if a < b else b
        else:
            for k in range(low.size):
                a, b = low[k], high[k]
                high[k] = b if a < b else a


@njit(nogil=True, error_model="numpy")
def _add_rows(values_NM: F32, start: int, stop: int, first: int, last: int, sums: F64) -> None:
    """Write the sums of a tile's rows ``first`` to ``last - 1`` to ``sums``, added in this order in float64."""
    values = values_NM[first, start:stop]
    for k in range(values.size):  # `sums[:] = values` would say the same, and takes numba two seconds to compile
        sums[k] = values[k]
    for row in range(first + 1, last):
        values = values_NM[row, start:stop]
        for k in range(values.size):
            sums[k] += values[k]


@njit(nogil=True, error_model="numpy")
def middle_mean(values_NM: F32, comparisons: I64, first: int, last: int, out_M: F32) -> None:
    """Write the mean of the values of ranks ``first`` to ``last - 1`` of each column.

    They are added from the smallest to the largest in float64; the mean is rounded to float32 once.

    Args:
        values_NM: a row an update; afterwards it holds anything.
        comparisons: `fedpath.server.aggregation.networks.network` of these ranks.
        first: lowest rank that counts, from 0.
        last: one past the highest.
        out_M: where the result goes.
    """
    columns, scratch = values_NM.shape[1], np.empty(_TILE, np.float64)
    for start in range(0, columns, _TILE):
        stop = min(start + _TILE, columns)
        out, sums = out_M[start:stop], scratch[: stop - start]
        _put_in_order(values_NM, start, stop, comparisons)
        _add_rows(values_NM, start, stop, first, last, sums)
        for k in range(sums.size):
            out[k] = sums[k] / (last - first)


@njit(nogil=True, error_model="numpy")
def nearest_mean(values_NM: F32, comparisons: I64, nearest: int, out_M: F32) -> None:
    """Write the mean of the ``nearest`` values of each column that are closest to its median.

    Of sorted values these are neighbours: the window of ``nearest`` values moves up while the value that would come in
    is closer to the median than the one that would go out; of two that are as close, the smaller counts. Medians,
    distances and sums are float64; a mean is rounded to float32 once.

    Args:
        values_NM: a row an update; afterwards it holds anything.
        comparisons: `fedpath.server.aggregation.networks.network` of all ranks.
        nearest: how many count, at least 1.
        out_M: where the result goes.
    """
    n, columns = values_NM.shape
    scratch = np.empty((3, _TILE), np.float64)
    for start in range(0, columns, _TILE):
        stop = min(start + _TILE, columns)
        size = stop - start
        out, middle, sums, moved = out_M[start:stop], scratch[0, :size], scratch[1, :size], scratch[2, :size]
        _put_in_order(values_NM, start, stop, comparisons)
        low, high = values_NM[(n - 1) // 2, start:stop], values_NM[n // 2, start:stop]
        for k in range(size):
            middle[k] = (np.float64(low[k]) + np.float64(high[k])) / 2
        _add_rows(values_NM, start, stop, 0, nearest, sums)
        # The further the window, the less does it pay to move it on: who has stopped does not start again.
        for place in range(n - nearest):
            leaves, comes = values_NM[place, start:stop], values_NM[place + nearest, start:stop]
            _add_rows(values_NM, start, stop, place + 1, place + 1 + nearest, moved)
            for k in range(size):
                sums[k] = moved[k] if comes[k] - middle[k] < middle[k] - leaves[k] else sums[k]
        for k in range(size):
            out[k] = sums[k] / nearest


@njit(nogil=True, fastmath={"reassoc", "contract"})
def _four_squares(a: F32, b: F32, c: F32, d: F32, e: F32) -> Any:
    """Return the squared distances of ``a`` from the others: one after the other, half the time would go into loads."""
    to_b = to_c = to_d = to_e = np.float32(0)
    for k in range(a.size):
        value = a[k]
        from_b, from_c, from_d, from_e = value - b[k], value - c[k], value - d[k], value - e[k]
        to_b += from_b * from_b
        to_c += from_c * from_c
        to_d += from_d * from_d
        to_e += from_e * from_e
    return to_b, to_c, to_d, to_e


@njit(nogil=True, fastmath={"reassoc", "contract"})
def _exact_square(a: F32, b: F32) -> Any:
    total = 0.0
    for k in range(a.size):
        difference = np.float64(a[k]) - np.float64(b[k])
        total += difference * difference
    return total


@njit(nogil=True, error_model="numpy")
def add_squared_distances(values_NM: F32, out_NN: F64) -> None:
    """Add the squared Euclidean distances between the rows to ``out_NN``.

    Sums of differences, not of products: what all rows have in common does not cost digits. Within a tile they are
    float32, over the tiles float64; where a tile's sum leaves float32, it is done again in float64.

    Args:
        values_NM: a row an update.
        out_NN: symmetric.
    """
    n, columns = values_NM.shape
    for start in range(0, columns, _TILE):
        stop = min(start + _TILE, columns)
        for i in range(n):
            a = values_NM[i, start:stop]
            for first in range(0, i, 4):
                rows = (first, min(first + 1, i), min(first + 2, i), min(first + 3, i))
                squares = _four_squares(
                    a,
                    values_NM[rows[0], start:stop],
                    values_NM[rows[1], start:stop],
                    values_NM[rows[2], start:stop],
                    values_NM[rows[3], start:stop],
                )
                for place in range(min(4, i - first)):
                    j, square = rows[place], np.float64(squares[place])
                    if not _TINY < square < _HUGE:
                        square = _exact_square(a, values_NM[j, start:stop])
                    out_NN[i, j] += square
                    out_NN[j, i] += square
