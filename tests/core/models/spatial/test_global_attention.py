"""Attention to all keys against the dense definition: per token, forward and backward, and what each key receives."""

import pytest
import torch
from literal_spatial import (
    LAYOUTS,
    assert_near,
    dense_attention,
    random_qkv,
    squared_distances,
    tissue_cells,
    with_gradients,
)
from torch import Tensor

from fedpath.core.models.spatial import alibi_slopes, global_attention

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def attend(qkv: list[Tensor], query_cells_N2: Tensor, key_cells_M2: Tensor, **options: object) -> Tensor:
    return global_attention(*qkv, query_cells_N2, key_cells_M2, alibi_slopes(len(qkv[0])), **{"far": 100} | options)  # type: ignore[arg-type]


def assert_equals_dense(
    query_cells_N2: Tensor, key_cells_M2: Tensor, heads: int, d: int, far: int, log_counts_M: Tensor | None = None
) -> None:
    qkv = random_qkv(heads, len(query_cells_N2), d, keys=len(key_cells_M2))
    squared_NM = squared_distances(query_cells_N2, key_cells_M2)
    for dtype, tolerance in TOLERANCE.items():
        inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in qkv]
        received_HM = torch.zeros(heads, len(key_cells_M2), dtype=dtype)
        out_HNd = attend(
            inputs, query_cells_N2, key_cells_M2, far=far, log_counts_M=log_counts_M, received_HM=received_HM
        )
        assert out_HNd.dtype == dtype
        exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
        expected_HNd, p_HNM = dense_attention(*exact, squared_NM, far=far, log_counts_M=log_counts_M)
        assert_near(with_gradients(out_HNd, inputs), with_gradients(expected_HNd, exact), tolerance)
        torch.testing.assert_close(
            received_HM.double(), p_HNM.detach().sum(dim=1), rtol=10 * tolerance, atol=10 * tolerance
        )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("far", [100, 3])
def test_equals_dense_attention(layout: str, far: int) -> None:
    cells_N2 = LAYOUTS[layout]()
    assert_equals_dense(cells_N2, cells_N2, heads=3, d=5, far=far)


@pytest.mark.parametrize("heads", [1, 3, 4])
@pytest.mark.parametrize("d", [5, 24])
def test_equals_dense_attention_for_any_heads(heads: int, d: int) -> None:
    cells_N2 = LAYOUTS["tissue with holes"]()
    assert_equals_dense(cells_N2, cells_N2, heads, d, far=100)


@pytest.mark.parametrize(("n", "m"), [(300, 1), (1, 200), (257, 40), (30, 300)])
def test_keys_may_be_others_than_the_queries(n: int, m: int) -> None:
    log_counts_M = torch.arange(1, m + 1, dtype=torch.float64).log()
    assert_equals_dense(tissue_cells(n), tissue_cells(m, seed=1) * 2, heads=3, d=5, far=10, log_counts_M=log_counts_M)


def test_the_farthest_distance_that_can_be_asked_for_is_exact() -> None:
    """Up to 4096 cells the squares are whole numbers of float32, and floor(sqrt) has no doubt."""
    along_N = torch.tensor([0, 1, 2047, 4093, 4094, 4095, 4096, 4097, 5000, 100_000])
    zero_N = torch.zeros_like(along_N)
    across_N2 = torch.stack([along_N, zero_N], dim=1)
    up_N2 = torch.stack([zero_N, along_N], dim=1)
    near_N2 = torch.tensor([[4095, 90], [4095, 91], [2896, 2896], [2897, 2896], [2457, 3276], [2457, 3277]])
    cells_N2 = torch.cat([across_N2, up_N2, near_N2])
    assert_equals_dense(cells_N2, cells_N2, heads=2, d=5, far=4096)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    cells_N2 = LAYOUTS["tissue with holes"]()
    qkv = random_qkv(3, len(cells_N2), 5, dtype)
    widened = [tensor.detach().float().requires_grad_() for tensor in qkv]
    log_counts_M = torch.arange(1, len(cells_N2) + 1).log()
    received_HM, expected_HM = torch.zeros(2, 3, len(cells_N2))
    got = with_gradients(attend(qkv, cells_N2, cells_N2, log_counts_M=log_counts_M, received_HM=received_HM), qkv)
    expected = with_gradients(
        attend(widened, cells_N2, cells_N2, log_counts_M=log_counts_M, received_HM=expected_HM), widened
    )
    assert [tensor.dtype for tensor in got] == [dtype] * 4
    assert torch.equal(got[0], expected[0].to(dtype))
    assert torch.equal(received_HM, expected_HM)
    assert_near(got, expected, 3 * torch.finfo(dtype).eps)


def test_autocast_and_inference_mode_change_nothing() -> None:
    cells_N2 = LAYOUTS["tissue with holes"]()
    qkv = random_qkv(3, len(cells_N2), 5, torch.float32)
    expected = with_gradients(attend(qkv, cells_N2, cells_N2), qkv)
    with torch.autocast("cpu", torch.bfloat16):
        inside = with_gradients(attend(qkv, cells_N2, cells_N2), qkv)
    assert all(torch.equal(one, other) for one, other in zip(inside, expected, strict=True))
    with torch.inference_mode():
        assert torch.equal(attend(qkv, cells_N2, cells_N2), expected[0])


def test_inputs_need_not_be_contiguous() -> None:
    cells_N2 = LAYOUTS["tissue with holes"]()
    packed_N3Hd = torch.randn(len(cells_N2), 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    packed_N3Hd.requires_grad_()
    views = list(packed_N3Hd.permute(1, 2, 0, 3))
    copies = [view.detach().contiguous().requires_grad_() for view in views]
    got_HNd, expected_HNd = (attend(inputs, cells_N2, cells_N2) for inputs in (views, copies))
    assert torch.equal(got_HNd, expected_HNd)
    (got,) = torch.autograd.grad(got_HNd.sum(), packed_N3Hd)
    expected = torch.autograd.grad(expected_HNd.sum(), copies)
    assert torch.equal(got, torch.stack(list(expected)).permute(2, 0, 1, 3))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_gradients_of_some_inputs_only(wanted: tuple[int, ...]) -> None:
    cells_N2 = LAYOUTS["scatter"]()
    qkv = random_qkv(3, len(cells_N2), 5)
    _, *expected = with_gradients(attend(qkv, cells_N2, cells_N2), qkv)
    some = [tensor.detach().requires_grad_(i in wanted) for i, tensor in enumerate(qkv)]
    _, *got = with_gradients(attend(some, cells_N2, cells_N2), [some[i] for i in wanted])
    assert all(torch.equal(one, expected[i]) for one, i in zip(got, wanted, strict=True))


def test_no_pair_is_masked_and_what_is_received_sums_to_the_queries() -> None:
    cells_N2 = LAYOUTS["one far away"]()
    heads, n = 4, len(cells_N2)
    q_HNd, k_HNd, _ = random_qkv(heads, n, n)
    received_HM = torch.zeros(heads, n, dtype=torch.float64)
    values_HNd = torch.eye(n, dtype=torch.float64).expand(heads, n, n)
    p_HNN = attend([q_HNd, k_HNd, values_HNd], cells_N2, cells_N2, received_HM=received_HM)
    assert (p_HNN > 0).all()
    torch.testing.assert_close(received_HM, p_HNN.sum(dim=1))
    torch.testing.assert_close(received_HM.sum(dim=1), torch.full((heads,), float(n), dtype=torch.float64))


@pytest.mark.parametrize("fault", ["keys", "values", "width", "heads", "query cells", "key cells", "slopes"])
def test_shapes_that_do_not_fit_are_an_error(fault: str) -> None:
    cells_N2 = LAYOUTS["scatter"]()[:100]
    q_HNd, k_HNd, v_HNd = (tensor.detach() for tensor in random_qkv(3, 100, 5))
    more = torch.zeros(3, 1, 5, dtype=torch.float64)
    wrong = {
        "keys": (q_HNd, torch.cat([k_HNd, more], dim=1), v_HNd),
        "values": (q_HNd, k_HNd, torch.cat([v_HNd, more], dim=1)),
        "width": (q_HNd, k_HNd, v_HNd[..., :4]),
        "heads": (q_HNd, k_HNd[:2], v_HNd[:2]),
    }
    cells = (cells_N2[: 99 if fault == "query cells" else 100], cells_N2[: 99 if fault == "key cells" else 100])
    slopes_H = alibi_slopes(1 if fault == "slopes" else 3)
    with pytest.raises(ValueError, match="do not fit"):
        global_attention(*wrong.get(fault, (q_HNd, k_HNd, v_HNd)), *cells, slopes_H, far=100)
