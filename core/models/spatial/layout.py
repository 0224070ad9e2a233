"""Where the patches of a slide lie on its grid, and which of them each small block of patches can see.

Local attention lets a patch look at the patches within a few cells. Patches that lie together see nearly the same
others, so they are worked on together: a tile of cells holds a block of at most ``BLOCK`` queries, whose keys are
all patches that any of them can reach. Only patches that exist are listed, so holes cost nothing, and several patches
in one cell are simply several entries. Everything here grows linearly with the number of patches.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]

TILE = 8
"""Edge of a tile in cells. Larger tiles make larger, faster products but more keys that most of their queries cannot
see: with radius 10, a full tile of 4, 8 or 16 cells meets 1.5, 2.2 or 3.7 times the keys a patch needs."""
BLOCK = TILE * TILE
"""Most queries in one block."""
_ROUND = 16
"""Blocks of one chunk are padded to one number of queries, a multiple of this."""


def grid_cells(coords_N2: Tensor, patch_size: int) -> Tensor:
    """Snap patch corners to a grid of cells as wide as a patch: int64 (N, 2), each axis starting at 0.

    Args:
        coords_N2: top-left corners (x, y) in pixels.
        patch_size: edge of a patch in the same pixels; 0 when unknown: then the distance from a patch to its nearest
            neighbour is taken, the median of it.
    """
    corner_N2 = coords_N2 - coords_N2.amin(dim=0)
    if patch_size <= 0:
        patch_size = _nearest(corner_N2)
    # To the nearest cell: grids of different tissue pieces are shifted against each other, and corners that came from
    # micrometres are off by a pixel here and there.
    return torch.div(2 * corner_N2 + patch_size, 2 * patch_size, rounding_mode="floor")


def _nearest(corner_N2: Tensor) -> int:
    """Return how far a patch is from the nearest at another place: the median of some patches; 1 if all are at one.

    Not the smallest step of an axis: where grids are shifted against each other or corners are off by a pixel, that is
    a pixel or so, and no patch would have another within its reach.
    """
    place_P2 = torch.unique(corner_N2, dim=0).to(torch.float64)
    if len(place_P2) == 1:
        return 1
    some_S2 = place_P2[:: -(-len(place_P2) // 64)]
    distance_SP = torch.cdist(some_S2, place_P2, compute_mode="donot_use_mm_for_euclid_dist")
    return round(distance_SP.masked_fill_(distance_SP == 0, torch.inf).amin(dim=1).median().item())


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some blocks, padded to one shape: T blocks of Q queries, each with K keys."""

    queries_TQ: Tensor
    """int64 index of each query; the last one is repeated where a block has fewer."""
    is_query_TQ: Tensor
    """False on those repetitions."""
    keys_TK: Tensor
    """int64 index of each key; any index where a block has fewer."""
    is_key_TK: Tensor
    """False on those."""

    def to(self, device: torch.device) -> "Chunk":
        """Return the chunk on a device."""
        return Chunk(*(getattr(self, field).to(device, non_blocking=True) for field in self.__slots__))


class WindowLayout:
    """The blocks of one slide for attention within ``radius`` cells.

    Args:
        cells_N2: int64 cell (x, y) of each patch, on the CPU.
        radius: largest Euclidean distance in cells at which a patch sees another, ≥ 0.
    """

    def __init__(self, cells_N2: Tensor, radius: int) -> None:
        self.radius = radius
        self.cells_N2 = cells_N2
        x_N, y_N = (axis.numpy() for axis in cells_N2.unbind(dim=1))
        tile_N = (y_N // TILE) * (int(x_N.max()) // TILE + 1) + x_N // TILE
        self.tile_order_N: Ints = np.lexsort((x_N, y_N, tile_N))
        first_T, count_T = _runs(tile_N[self.tile_order_N])
        self._find_keys(x_N, y_N, first_T, count_T)
        # A crowded tile (many patches in one cell) makes several blocks that share its keys.
        blocks_T = -(-count_T // BLOCK)
        self._tile_B: Ints = np.repeat(np.arange(len(count_T)), blocks_T)
        number_B = _within(blocks_T)
        self._first_B: Ints = first_T[self._tile_B] + number_B * BLOCK
        self._count_B: Ints = np.minimum(count_T[self._tile_B] - number_B * BLOCK, BLOCK)

    def _find_keys(self, x_N: Ints, y_N: Ints, first_T: Ints, count_T: Ints) -> None:
        """List, tile after tile, the patches within reach of the smallest rectangle around the tile's patches."""
        columns = int(x_N.max()) + 1
        self._row_major_N: Ints = np.lexsort((x_N, y_N))
        place_N = y_N[self._row_major_N] * columns + x_N[self._row_major_N]
        x_in_order_N, y_in_order_N = x_N[self.tile_order_N], y_N[self.tile_order_N]
        left_T, right_T = (np.minimum.reduceat(x_in_order_N, first_T), np.maximum.reduceat(x_in_order_N, first_T))
        top_T, bottom_T = (np.minimum.reduceat(y_in_order_N, first_T), np.maximum.reduceat(y_in_order_N, first_T))
        # In each row of cells, what the rectangle can reach is one run of columns, hence one run in row-major order.
        rows_TR = top_T[:, None] + np.arange(-self.radius, TILE + self.radius)
        gap_TR = np.maximum(0, np.maximum(top_T[:, None] - rows_TR, rows_TR - bottom_T[:, None]))
        reach_TR = np.sqrt(np.maximum(self.radius**2 - gap_TR**2, 0)).astype(np.int64)
        start_TR = np.searchsorted(place_N, rows_TR * columns + np.maximum(left_T[:, None] - reach_TR, 0), "left")
        end_TR = np.searchsorted(
            place_N, rows_TR * columns + np.minimum(right_T[:, None] + reach_TR, columns - 1), "right"
        )
        length_TR = np.where((gap_TR <= self.radius) & (rows_TR >= 0), end_TR - start_TR, 0)
        runs = np.repeat(start_TR.ravel(), length_TR.ravel()) + _within(length_TR.ravel())
        self._keys: Ints = self._row_major_N[runs]
        self._n_keys_T: Ints = length_TR.sum(axis=1)
        self._first_key_T: Ints = np.cumsum(self._n_keys_T) - self._n_keys_T

    def __len__(self) -> int:
        """Return N."""
        return len(self.cells_N2)

    def chunks(self, budget: int) -> Iterator[Chunk]:
        """Yield all blocks, those of like shape together, in chunks of at most ``budget`` query-key pairs.

        Every patch is a query exactly once. A block that is larger than the budget is a chunk of its own.
        """
        n_keys_B = self._n_keys_T[self._tile_B]
        padded_B = -(-self._count_B // _ROUND) * _ROUND
        sorted_B = np.lexsort((n_keys_B, padded_B))
        start = 0
        while start < len(sorted_B):
            # The keys only grow along a run of one query count, hence also the size of the chunk that ends at a block.
            n_queries = padded_B[sorted_B[start]]
            end = start + int(np.searchsorted(padded_B[sorted_B[start:]], n_queries, "right"))
            run_B = sorted_B[start : min(end, start + budget // n_queries)]
            pairs_B = n_queries * n_keys_B[run_B] * np.arange(1, len(run_B) + 1)
            end = start + max(1, int(np.searchsorted(pairs_B, budget, "right")))
            yield self._chunk(sorted_B[start:end])
            start = end

    def _chunk(self, blocks_T: Ints) -> Chunk:
        count_T1 = self._count_B[blocks_T][:, None]
        tile_T = self._tile_B[blocks_T]
        n_keys_T1 = self._n_keys_T[tile_T][:, None]
        slot_Q, slot_K = np.arange(count_T1.max()), np.arange(n_keys_T1.max())
        queries_TQ = self.tile_order_N[self._first_B[blocks_T][:, None] + np.minimum(slot_Q, count_T1 - 1)]
        keys_TK = self._keys[self._first_key_T[tile_T][:, None] + np.minimum(slot_K, n_keys_T1 - 1)]
        arrays = (queries_TQ, slot_Q < count_T1, keys_TK, slot_K < n_keys_T1)
        return Chunk(*(torch.from_numpy(array) for array in arrays))


def _runs(values_N: Ints) -> tuple[Ints, Ints]:
    """Return start and length of each run of equal values."""
    starts = np.flatnonzero(np.r_[True, np.diff(values_N) != 0])
    return starts, np.diff(np.r_[starts, len(values_N)])


def _within(lengths: Ints) -> Ints:
    """Return 0, 1, …, length - 1 for each length, one after the other."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
