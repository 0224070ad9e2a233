"""Where patches lie: cells from coordinates, and blocks that leave out nobody and list nobody twice."""

import pytest
import torch
from literal_spatial import LAYOUTS, scattered_cells, squared_distances, tissue_cells
from torch import Tensor

from fedpath.core.models.spatial import WindowLayout, grid_cells
from fedpath.core.models.spatial.layout import BLOCK


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("radius", [0, 1, 3, 10])
@pytest.mark.parametrize("budget", [1, 5000, 2**17])
def test_blocks_cover_every_query_once_and_every_key_in_reach(layout: str, radius: int, budget: int) -> None:
    cells_N2 = LAYOUTS[layout]()
    n = len(cells_N2)
    squared_NN = torch.tensor(squared_distances(cells_N2, cells_N2))
    seen: list[int] = []
    for chunk in WindowLayout(cells_N2, radius).chunks(budget):
        n_blocks, n_queries = chunk.queries_TQ.shape
        assert n_queries <= BLOCK
        assert chunk.is_query_TQ.shape == (n_blocks, n_queries)
        assert chunk.is_key_TK.shape == chunk.keys_TK.shape
        # More than one block: they fit the budget together.
        assert n_blocks == 1 or n_blocks * n_queries * chunk.keys_TK.shape[1] <= budget
        rows = zip(chunk.queries_TQ, chunk.is_query_TQ, chunk.keys_TK, chunk.is_key_TK, strict=True)
        for queries_Q, is_query_Q, keys_K, is_key_K in rows:
            queries, keys = queries_Q[is_query_Q], keys_K[is_key_K]
            seen += queries.tolist()
            # What fills the block up is an index of the slide, too.
            assert queries_Q.max() < n
            assert keys_K.max() < n
            assert set(queries_Q[~is_query_Q].tolist()) <= set(queries.tolist())
            assert len(set(keys.tolist())) == len(keys)
            in_reach_N = (squared_NN[queries] <= radius**2).any(dim=0)
            assert set(in_reach_N.nonzero().flatten().tolist()) <= set(keys.tolist())
    assert sorted(seen) == list(range(n))


def test_neighbours_share_a_block() -> None:
    """A full tile of 8 × 8 cells is one block of 64 queries."""
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    chunks = list(WindowLayout(torch.stack([x.flatten(), y.flatten()], dim=1), 10).chunks(2**17))
    assert sum(len(chunk.queries_TQ) for chunk in chunks) == 16
    assert all(chunk.is_query_TQ.all() for chunk in chunks)


def listed(layout: WindowLayout) -> int:
    """Queries and keys of all blocks, padding included."""
    return sum(chunk.queries_TQ.numel() + chunk.keys_TK.numel() for chunk in layout.chunks(2**17))


def test_sizes_grow_with_the_patches_only() -> None:
    per_patch = {n: listed(WindowLayout(tissue_cells(n), 10)) / n for n in (5_000, 20_000, 80_000)}
    assert max(per_patch.values()) < 1.1 * per_patch[5_000]
    # A full tile meets 2.2 times the keys in reach, 317, for 64 queries.
    assert max(per_patch.values()) < 2 * 2.2 * 317 / 64


def test_scattered_patches_cost_no_more_than_their_neighbours() -> None:
    for n in (5_000, 80_000):
        cells_N2 = scattered_cells(n, 10 * int(n**0.5))  # one cell in a hundred
        pairs = sum(
            chunk.queries_TQ.numel() * chunk.keys_TK.shape[1] for chunk in WindowLayout(cells_N2, 10).chunks(2**17)
        )
        assert pairs < 300 * n


def test_an_empty_frame_costs_nothing() -> None:
    """Two clumps cost the same however far they lie apart."""
    clump_N2 = tissue_cells(400)
    sizes = [listed(WindowLayout(torch.cat([clump_N2, clump_N2 + 64 * gap]), 10)) for gap in (2, 2_000, 2_000_000)]
    assert len(set(sizes)) == 1


def grid(edge: int) -> Tensor:
    y, x = torch.meshgrid(torch.arange(edge), torch.arange(edge), indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def jitter(n: int, pixels: int) -> Tensor:
    return torch.randint(-pixels, pixels + 1, (n, 2), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("patch_size", "pixels"), [(256, 0), (256, 1), (256, 60), (0, 0), (0, 1)])
def test_cells_of_a_grid(patch_size: int, pixels: int) -> None:
    """Known or not, off by a pixel or not: the grid's own columns and rows."""
    cells_N2 = grid(20)
    coords_N2 = 256 * cells_N2 + jitter(400, pixels) + torch.tensor([1_234_567, 89])
    assert grid_cells(coords_N2, patch_size).dtype == torch.int64
    assert torch.equal(grid_cells(coords_N2, patch_size), cells_N2)


@pytest.mark.parametrize("patch_size", [256, 0])
def test_a_grid_with_holes_and_patches_far_apart(patch_size: int) -> None:
    cells_N2 = torch.cat([tissue_cells(150), torch.tensor([[900, 7], [905, 300]])])
    cells_N2 = cells_N2 - cells_N2.amin(dim=0)
    assert torch.equal(grid_cells(100 + 256 * cells_N2, patch_size), cells_N2)


@pytest.mark.parametrize("patch_size", [256, 0])
@pytest.mark.parametrize("shift", [3, 127, 128, 129, 250])
def test_grids_shifted_against_each_other_keep_their_own_distances(patch_size: int, shift: int) -> None:
    """Pieces of tissue start their grids anywhere; inside each piece no cell is lost and none is taken twice."""
    piece_N2 = 256 * grid(12)
    cells_N2 = grid_cells(torch.cat([piece_N2, piece_N2 + torch.tensor([256 * 12 + shift, shift])]), patch_size)
    for piece in (cells_N2[:144], cells_N2[144:]):
        assert torch.equal(piece - piece[0], grid(12))
    error = (cells_N2[144] - cells_N2[0]).double() - torch.tensor([12 + shift / 256, shift / 256], dtype=torch.float64)
    assert (error.abs() <= 0.5).all()


@pytest.mark.parametrize("patch_size", [256, 0])
def test_cells_of_one_patch_of_equal_ones_and_of_lines(patch_size: int) -> None:
    assert grid_cells(torch.tensor([[5000, 70]]), patch_size).tolist() == [[0, 0]]
    assert grid_cells(torch.full((7, 2), 300), patch_size).tolist() == [[0, 0]] * 7
    along_N = torch.arange(9)
    row_N2 = torch.stack([along_N, torch.zeros_like(along_N)], dim=1)
    assert torch.equal(grid_cells(10 + 256 * row_N2, patch_size), row_N2)
    assert torch.equal(grid_cells(10 + 256 * row_N2.flip(1), patch_size), row_N2.flip(1))


def test_an_unknown_patch_size_does_not_depend_on_the_order() -> None:
    coords_N2 = 256 * tissue_cells(900) + jitter(900, 3)
    order_N = torch.randperm(900, generator=torch.Generator().manual_seed(1))
    assert torch.equal(grid_cells(coords_N2[order_N], 0), grid_cells(coords_N2, 0)[order_N])


def test_overlapping_patches_share_cells() -> None:
    """A stride of half a patch: two by two patches a cell, none left out."""
    cells_N2 = grid_cells(128 * grid(10), 256)
    assert cells_N2.max() == 5
    counts = torch.unique(cells_N2, dim=0, return_counts=True)[1]
    assert sorted(set(counts.tolist())) == [1, 2, 4]
