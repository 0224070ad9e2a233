"""Rings to masks and masks to rings, exactly: a pixel is inside if its centre is, and rings run along pixels' borders.

So a mask that is traced and filled again is the same mask.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ring = NDArray[np.float64]
"""K×2 corners x, y; the last is joined to the first."""
Polygon = list[Ring]
"""The outer ring, then its holes."""
_AT_ONCE = 256


def fill(polygons: list[Polygon], shape: tuple[int, int], scale: float) -> NDArray[np.bool_]:
    """Return the pixels (H×W) whose centres lie in any of the polygons.

    Args:
        polygons: in any unit.
        shape: height and width of the result.
        scale: units a pixel.
    """
    inside_HW = np.zeros(shape, np.bool_)
    for polygon in polygons:
        corners_K2 = np.concatenate(polygon) / scale
        low, high = np.floor(corners_K2.min(axis=0)), np.ceil(corners_K2.max(axis=0))
        left, top = np.clip(low, 0, shape[::-1]).astype(int)
        right, bottom = np.clip(high, 0, shape[::-1]).astype(int)
        if left < right and top < bottom:
            rings = [ring / scale - (left, top) for ring in polygon]
            inside_HW[top:bottom, left:right] |= _parity(rings, bottom - top, right - left)
    return inside_HW


def _parity(rings: list[Ring], height: int, width: int) -> NDArray[np.bool_]:
    """Return the pixels with an odd number of borders between them and the left side: inside, and not in a hole."""
    crossings_HW = np.zeros((height, width + 1), np.uint8)
    for ring in rings:
        start_K2, end_K2 = ring, np.roll(ring, -1, axis=0)
        upper_K2 = np.where((start_K2[:, 1] < end_K2[:, 1])[:, None], start_K2, end_K2)
        lower_K2 = np.where((start_K2[:, 1] < end_K2[:, 1])[:, None], end_K2, start_K2)
        # Rows whose centre lies in [upper, lower): a corner on a centre then counts once for both its edges.
        first_K = np.clip(np.ceil(upper_K2[:, 1] - 0.5), 0, height).astype(int)
        last_K = np.clip(np.ceil(lower_K2[:, 1] - 0.5), 0, height).astype(int)
        count_K = last_K - first_K
        edge_C = np.repeat(np.arange(len(ring)), count_K)
        row_C = np.arange(count_K.sum()) - np.repeat(np.cumsum(count_K) - count_K, count_K) + first_K[edge_C]
        run_C = lower_K2[edge_C] - upper_K2[edge_C]
        x_C = upper_K2[edge_C, 0] + (row_C + 0.5 - upper_K2[edge_C, 1]) * run_C[:, 0] / run_C[:, 1]
        column_C = np.clip(np.ceil(x_C - 0.5), 0, width).astype(int)
        np.add.at(crossings_HW, (row_C, column_C), 1)
    return (np.cumsum(crossings_HW & 1, axis=1)[:, :width] & 1).astype(np.bool_)


def crosses_itself(ring: Ring) -> bool:
    """Return whether two edges of a ring cross; touching is no crossing."""
    start_K2, end_K2 = ring, np.roll(ring, -1, axis=0)
    order_K = np.argsort(np.minimum(start_K2[:, 0], end_K2[:, 0]), kind="stable")
    start_K2, end_K2 = start_K2[order_K], end_K2[order_K]
    low_K2, high_K2 = np.minimum(start_K2, end_K2), np.maximum(start_K2, end_K2)
    for first in range(0, len(ring), _AT_ONCE):
        chunk = slice(first, first + _AT_ONCE)
        # Sorted by where edges begin: those beyond the chunk's furthest end cannot meet it.
        limit = int(np.searchsorted(low_K2[:, 0], high_K2[chunk, 0].max(), side="right"))
        rest = slice(first, limit)
        near = (low_K2[chunk, None] <= high_K2[None, rest]) & (low_K2[None, rest] <= high_K2[chunk, None])
        mine_P, theirs_P = np.nonzero(near.all(axis=2))
        mine_P, theirs_P = mine_P + first, theirs_P + first
        a, b, c, d = start_K2[mine_P], end_K2[mine_P], start_K2[theirs_P], end_K2[theirs_P]
        if np.any((_side(a, b, c) * _side(a, b, d) < 0) & (_side(c, d, a) * _side(c, d, b) < 0)):
            return True
    return False


def _side(a_P2: Ring, b_P2: Ring, c_P2: Ring) -> NDArray[np.float64]:
    """Return on which side of the line from a to b the point c lies: -1, 0 or 1."""
    ab, ac = b_P2 - a_P2, c_P2 - a_P2
    return np.sign(ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0])


def trace(mask_HW: NDArray[np.bool_], labels_HW: NDArray[np.int32]) -> list[Polygon]:
    """Return the polygons of a mask, in pixels; no ring meets itself.

    Args:
        mask_HW: what to trace.
        labels_HW: its parts, joined by pixels' edges, from 1.
    """
    outer: dict[int, list[Ring]] = {}
    holes: dict[int, list[Ring]] = {}
    for label, ring in _rings(mask_HW, labels_HW):
        x_K, y_K = ring.T
        area = float(np.sum(x_K * np.roll(y_K, -1) - np.roll(x_K, -1) * y_K))
        (outer if area > 0 else holes).setdefault(label, []).append(ring)
    return [
        [ring, *(holes.get(label, ()) if index == 0 else ())]
        for label, rings in sorted(outer.items())
        for index, ring in enumerate(rings)
    ]


def _rings(mask_HW: NDArray[np.bool_], labels_HW: NDArray[np.int32]) -> list[tuple[int, Ring]]:
    """Return every ring with the label of the part it belongs to; what is inside lies on its right as it is drawn."""
    padded_HW = np.pad(mask_HW, 1)
    leaving: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    # An edge goes along each side of a pixel whose neighbour there is outside: from corner, by step.
    for neighbour, corner, step in (
        ((0, 1), (0, 0), (1, 0)),  # above: to the right
        ((1, 2), (1, 0), (0, 1)),  # right: down
        ((2, 1), (1, 1), (-1, 0)),  # below: to the left
        ((1, 0), (0, 1), (0, -1)),  # left: up
    ):
        height, width = mask_HW.shape
        other_HW = padded_HW[neighbour[0] : neighbour[0] + height, neighbour[1] : neighbour[1] + width]
        rows, columns = np.nonzero(mask_HW & ~other_HW)
        for x, y, label in zip(columns + corner[0], rows + corner[1], labels_HW[rows, columns], strict=True):
            leaving.setdefault((int(x), int(y)), []).append((*step, int(label)))
    found = []
    for start in list(leaving):
        while leaving[start]:
            at, (dx, dy, label) = start, leaving[start].pop()
            walk = [at]
            while (at := (at[0] + dx, at[1] + dy)) != start:
                walk.append(at)
                # Where two pixels meet at a corner only, turn right: around the pixel that the walk goes along.
                options = leaving[at]
                turn = next((o for o in options if o[:2] == (-dy, dx)), options[0])
                options.remove(turn)
                dx, dy = turn[:2]
            found += [(label, _corners(loop)) for loop in _simple(walk)]
    return found


def _simple(walk: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Cut a closed walk where it comes to a point again."""
    loops: list[list[tuple[int, int]]] = []
    path: list[tuple[int, int]] = []
    place: dict[tuple[int, int], int] = {}
    for at in walk:
        if at in place:
            first = place[at]
            loops.append(path[first:])
            for gone in path[first + 1 :]:
                del place[gone]
            del path[first + 1 :]
        else:
            place[at] = len(path)
            path.append(at)
    return [*loops, path]


def _corners(loop: list[tuple[int, int]]) -> Ring:
    """Return where a loop of steps turns."""
    around = [loop[-1], *loop, loop[0]]
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(around)]
    kept = [point for point, (before, after) in zip(loop, pairwise(steps), strict=True) if before != after]
    return np.array(kept, np.float64)
