"""Sorting networks: which pairs of rows to compare so that chosen ranks end up in their places, for any number of rows.

Batcher's merge exchange (Knuth, The Art of Computer Programming, volume 3, 5.2.2, algorithm M) sorts n rows with about
n·log²n / 4 comparisons. Those that do not reach the wanted ranks are left out, and of those that reach them with one
end only that end is computed.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

BOTH, LOWER, UPPER = 0, 1, 2
"""What a comparison writes: both rows, only the smaller into the first, only the larger into the second."""


@lru_cache(maxsize=256)
def network(n: int, first: int, last: int) -> NDArray[np.int64]:
    """Return the comparisons that put the values of ranks ``first`` to ``last - 1`` into the rows of these numbers.

    Args:
        n: rows.
        first: lowest wanted rank, from 0.
        last: one past the highest.

    Returns:
        [comparisons, 3], in order: row, row, what is written. Other rows than the wanted ones hold anything.
    """
    wanted, kept = set(range(first, last)), []
    for low, high in reversed(list(_merge_exchange(n))):
        lower, upper = low in wanted, high in wanted
        if lower or upper:
            kept.append((low, high, BOTH if lower and upper else LOWER if lower else UPPER))
            wanted |= {low, high}
    return np.array(kept[::-1], np.int64).reshape(-1, 3)


def _merge_exchange(n: int) -> Iterator[tuple[int, int]]:
    if n < 2:
        return
    top = 1 << ((n - 1).bit_length() - 1)
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            for i in range(n - d):
                if i & p == r:
                    yield i, i + d
            if q == p:
                break
            d, q, r = q - p, q // 2, p
        p //= 2
