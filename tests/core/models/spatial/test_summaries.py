"""Windows that stand for their patches: a partition within its limit, means and shares, and where they are exact."""

import pytest
import torch
from literal_spatial import LAYOUTS, assert_near, random_qkv, tissue_cells, with_gradients
from torch import Tensor

from fedpath.core.models.spatial import Windows, alibi_slopes, global_attention

CELLS_512 = LAYOUTS | {"a large slide": lambda: tissue_cells(9_000)}


def members(cells_N2: Tensor, edge: int) -> dict[tuple[int, int], list[int]]:
    found: dict[tuple[int, int], list[int]] = {}
    for i, (x, y) in enumerate(cells_N2.tolist()):
        found.setdefault((x // edge, y // edge), []).append(i)
    return found


@pytest.mark.parametrize("layout", CELLS_512)
@pytest.mark.parametrize("limit", [1, 2, 7, 512])
def test_windows_are_the_finest_partition_within_the_limit(layout: str, limit: int) -> None:
    cells_N2 = CELLS_512[layout]()
    windows = Windows(cells_N2, limit)
    edge = 4
    while len(members(cells_N2, edge)) > limit:
        edge *= 2
    assert windows.edge == edge
    expected = sorted(members(cells_N2, edge).values())
    got = [(windows.window_N == window).nonzero().flatten().tolist() for window in range(len(windows))]
    assert sorted(got) == expected
    assert len(windows) <= limit
    assert windows.counts_M.tolist() == [len(group) for group in got]

    values_HNd = torch.randn(3, len(cells_N2), 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    means_HMd = torch.stack([values_HNd[:, group].mean(dim=1) for group in got], dim=1)
    torch.testing.assert_close(windows.mean(values_HNd), means_HMd)
    for centre, group in zip(windows.centres_M2.tolist(), got, strict=True):
        assert centre == [round(sum(axis) / len(group)) for axis in cells_N2[group].T.tolist()]

    received_HM = torch.rand(3, len(windows), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    spread_HN = windows.spread(received_HM)
    torch.testing.assert_close(spread_HN.sum(dim=1), received_HM.sum(dim=1))
    for window, group in enumerate(got):
        torch.testing.assert_close(spread_HN[:, group], (received_HM[:, [window]] / len(group)).expand(-1, len(group)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_means_of_half_precision_are_rounded_once(dtype: torch.dtype) -> None:
    """A window of thousands of patches: neither the sum nor the count fits such a type."""
    cells_N2 = tissue_cells(5_000)
    values_HNd = (40 + torch.randn(2, 5_000, 3, generator=torch.Generator().manual_seed(0))).to(dtype)
    windows = Windows(cells_N2, 3)
    exact_HMd = windows.mean(values_HNd.double())
    assert windows.mean(values_HNd).dtype == torch.float32
    torch.testing.assert_close(windows.mean(values_HNd).double(), exact_HMd, rtol=1e-5, atol=0)


def test_means_have_gradients() -> None:
    windows = Windows(tissue_cells(60), 4)
    values_HNd = torch.randn(2, 60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(windows.mean, [values_HNd.requires_grad_()])


def both_forms(qkv: list[Tensor], cells_N2: Tensor, limit: int) -> tuple[list[Tensor], list[Tensor]]:
    """Result, gradients and what each patch receives, exact and through windows."""
    q_HNd, k_HNd, v_HNd = qkv
    windows, slopes_H = Windows(cells_N2, limit), alibi_slopes(len(q_HNd))
    received_HN, received_HM = q_HNd.new_zeros(q_HNd.shape[:2]), q_HNd.new_zeros(len(q_HNd), len(windows))
    exact_HNd = global_attention(*qkv, cells_N2, cells_N2, slopes_H, far=100, received_HM=received_HN)
    windows_HNd = global_attention(
        q_HNd,
        windows.mean(k_HNd),
        windows.mean(v_HNd),
        cells_N2,
        windows.centres_M2,
        slopes_H,
        far=100,
        log_counts_M=windows.log_counts_M,
        received_HM=received_HM,
    )
    torch.testing.assert_close(windows.spread(received_HM), received_HN)
    return with_gradients(exact_HNd, qkv), with_gradients(windows_HNd, qkv)


def test_exact_where_every_patch_is_its_own_window() -> None:
    cells_N2 = 4 * tissue_cells(200)
    exact, windows = both_forms(random_qkv(3, 200, 5), cells_N2, 10**6)
    assert_near(windows, exact, 1e-12)


def test_exact_where_the_patches_of_a_window_are_alike_and_equally_far() -> None:
    """Several patches in each of some cells, with one key and one value a cell."""
    places_N2 = 4 * tissue_cells(40)
    copies_N = torch.randint(1, 6, (40,), generator=torch.Generator().manual_seed(0)).cumsum(0)
    of_place_N = torch.searchsorted(copies_N, torch.arange(int(copies_N[-1])), right=True)
    q_HNd, k_HMd, v_HMd = random_qkv(3, len(of_place_N), 5, keys=40)
    alike = [tensor.detach()[:, of_place_N].requires_grad_() for tensor in (k_HMd, v_HMd)]
    exact, windows = both_forms([q_HNd, *alike], places_N2[of_place_N], 512)
    assert_near(windows, exact, 1e-12)


def test_near_the_exact_form_where_neighbours_are_nearly_alike() -> None:
    """A smooth slide: what 100 windows give is close to what 2000 patches give."""
    cells_N2 = tissue_cells(2_000)
    place_N2 = cells_N2 / 60
    wave_2d = torch.randn(2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    smooth_Nd = torch.sin(place_N2.double() @ wave_2d)
    q_HNd, k_HNd, v_HNd = (smooth_Nd.expand(2, -1, -1),) * 3
    windows = Windows(cells_N2, 512)
    slopes_H = alibi_slopes(2)[1:].expand(2)
    exact_HNd = global_attention(q_HNd, k_HNd, v_HNd, cells_N2, cells_N2, slopes_H, far=100)
    near_HNd = global_attention(
        q_HNd,
        windows.mean(k_HNd),
        windows.mean(v_HNd),
        cells_N2,
        windows.centres_M2,
        slopes_H,
        far=100,
        log_counts_M=windows.log_counts_M,
    )
    assert (near_HNd - exact_HNd).abs().max() < 0.01 * v_HNd.std()
