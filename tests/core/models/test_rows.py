"""Products with a bag's features a chunk at a time, against the same products of the whole bag."""

import pytest
import torch
from torch import Tensor

from fedpath.core.models import rows
from fedpath.core.models.rows import row_chunks, times, weighted_sum

WIDTH, G, K = 5, 4, 3


@pytest.fixture(autouse=True, params=[4, 7, 100])
def rows_a_chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_ROWS", request.param)


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("n_instances", [1, 7, 8, 23])
def test_equal_the_whole_products_and_their_gradients(n_instances: int) -> None:
    x_ND, weight_GD, bias_G = drawn(n_instances, WIDTH), drawn(G, WIDTH), drawn(G)
    a_KN = drawn(K, n_instances)
    for tensor in (x_ND, weight_GD, bias_G, a_KN):
        tensor.requires_grad_()
    for ours, plain, tensors in (
        (times(x_ND, weight_GD, bias_G), x_ND @ weight_GD.T + bias_G, (x_ND, weight_GD, bias_G)),
        (weighted_sum(a_KN, x_ND), a_KN @ x_ND, (a_KN, x_ND)),
    ):
        torch.testing.assert_close(ours, plain)
        upstream = drawn(*ours.shape)
        gradients = torch.autograd.grad(ours, tensors, upstream)
        for got, wanted in zip(gradients, torch.autograd.grad(plain, tensors, upstream), strict=True):
            torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("is_mixed", [False, True])
def test_features_of_any_float_type_meet_the_weights_in_theirs(dtype: torch.dtype, is_mixed: bool) -> None:
    x_ND = drawn(23, WIDTH, dtype=dtype)
    weight_GD, bias_G = drawn(G, WIDTH, dtype=torch.float32).requires_grad_(), drawn(G, dtype=torch.float32)
    a_KN = drawn(K, 23, dtype=torch.float32).softmax(dim=1).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
        y_NG, sum_KD = times(x_ND, weight_GD, bias_G), weighted_sum(a_KN, x_ND)
    assert y_NG.dtype == (torch.bfloat16 if is_mixed else torch.float32)
    assert sum_KD.dtype == torch.float32
    tolerance = 0.05 if is_mixed else 1e-5
    torch.testing.assert_close(y_NG.float(), x_ND.float() @ weight_GD.T + bias_G, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(sum_KD, a_KN @ x_ND.float(), rtol=tolerance, atol=tolerance)
    (y_NG.float().sum() + sum_KD.sum()).backward()
    wide_D = x_ND.float().sum(dim=0)
    torch.testing.assert_close(weight_GD.grad, wide_D.expand(G, -1), rtol=tolerance, atol=20 * tolerance)
    torch.testing.assert_close(a_KN.grad, x_ND.float().sum(dim=1).expand(K, -1), rtol=tolerance, atol=20 * tolerance)


def test_chunks_are_the_rows_in_order() -> None:
    x_ND = drawn(23, WIDTH, dtype=torch.float16)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        copy_ND = torch.empty(23, WIDTH, dtype=dtype)
        for place, x_nD in row_chunks(x_ND, dtype):
            assert x_nD.dtype == dtype
            copy_ND[place] = x_nD
        assert torch.equal(copy_ND, x_ND.to(dtype))
