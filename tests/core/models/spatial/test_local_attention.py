"""Attention within a radius against the dense masked definition: per token, forward and backward."""

import math

import pytest
import torch
from literal_spatial import (
    LAYOUTS,
    assert_near,
    dense_attention,
    random_qkv,
    squared_distances,
    with_gradients,
)
from torch import Tensor

from fedpath.core.models.spatial import WindowLayout, alibi_slopes, local, local_attention

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}

every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def attend(qkv: list[Tensor], cells_N2: Tensor, radius: int, dropout: float = 0.0) -> Tensor:
    return local_attention(*qkv, WindowLayout(cells_N2, radius), alibi_slopes(len(qkv[0])), dropout=dropout)


def assert_equals_dense(cells_N2: Tensor, radius: int, heads: int, d: int) -> None:
    qkv = random_qkv(heads, len(cells_N2), d)
    squared_NN = squared_distances(cells_N2, cells_N2)
    for dtype, tolerance in TOLERANCE.items():
        inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in qkv]
        out_HNd = attend(inputs, cells_N2, radius)
        assert out_HNd.dtype == dtype
        exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
        expected_HNd, _ = dense_attention(*exact, squared_NN, radius=radius)
        assert_near(with_gradients(out_HNd, inputs), with_gradients(expected_HNd, exact), tolerance)


@every_layout
@pytest.mark.parametrize("radius", [0, 1, 3, 10])
def test_equals_dense_attention_with_a_mask(layout: str, radius: int) -> None:
    assert_equals_dense(LAYOUTS[layout](), radius, heads=3, d=5)


@pytest.mark.parametrize("heads", [1, 3, 4])
@pytest.mark.parametrize("d", [5, 24])
def test_equals_dense_attention_for_any_heads(heads: int, d: int) -> None:
    assert_equals_dense(LAYOUTS["tissue with holes"](), 4, heads, d)


@every_layout
@pytest.mark.parametrize("pairs", [1, 3000])
def test_equals_dense_attention_in_many_chunks(layout: str, pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_PAIRS", pairs)
    assert_equals_dense(LAYOUTS[layout](), 3, heads=3, d=5)


def test_coordinates_beyond_the_whole_numbers_of_float32_are_exact() -> None:
    clump_N2 = LAYOUTS["tissue with holes"]()[:60]
    assert_equals_dense(torch.cat([clump_N2, clump_N2 + 10**9 + 1]), 3, heads=2, d=5)


@every_layout
def test_every_head_is_masked_outside_the_window(layout: str) -> None:
    """One-hot values make the result the probabilities themselves."""
    cells_N2 = LAYOUTS[layout]()
    heads, n, radius = 4, len(cells_N2), 3
    q_HNd, k_HNd, _ = random_qkv(heads, n, n)
    p_HNN = attend([q_HNd, k_HNd, torch.eye(n, dtype=torch.float64).expand(heads, n, n)], cells_N2, radius)
    outside_NN = torch.tensor([[s > radius**2 for s in row] for row in squared_distances(cells_N2, cells_N2)])
    for p_NN in p_HNN:
        assert torch.equal(p_NN == 0, outside_NN)
        assert (p_NN == 0).double().mean() == outside_NN.double().mean()
        torch.testing.assert_close(p_NN.sum(dim=1), torch.ones(n, dtype=torch.float64))


def test_gradients_of_values_see_every_head_masked() -> None:
    """The gradient of out[i] in v[j] is the probability: 0 outside the window, in every head."""
    cells_N2, radius = LAYOUTS["scatter"](), 10
    qkv = random_qkv(4, len(cells_N2), 5)
    out_HNd = attend(qkv, cells_N2, radius)
    squared_NN = squared_distances(cells_N2, cells_N2)
    for i in (0, 17, 149):
        (gradient_HNd,) = torch.autograd.grad(out_HNd[:, i, 0].sum(), qkv[2], retain_graph=True)
        outside_N = torch.tensor([square > radius**2 for square in squared_NN[i]])
        assert torch.equal(gradient_HNd[:, :, 0] == 0, outside_N.expand(4, -1))


def test_the_order_of_the_patches_does_not_matter() -> None:
    cells_N2 = LAYOUTS["duplicates"]()
    qkv = random_qkv(3, len(cells_N2), 5)
    order_N = torch.randperm(len(cells_N2), generator=torch.Generator().manual_seed(3))
    moved = attend([tensor[:, order_N] for tensor in qkv], cells_N2[order_N], 3)
    torch.testing.assert_close(moved, attend(qkv, cells_N2, 3)[:, order_N], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    cells_N2 = LAYOUTS["tissue with holes"]()
    qkv = random_qkv(3, len(cells_N2), 5, dtype)
    widened = [tensor.detach().float().requires_grad_() for tensor in qkv]
    got, expected = (with_gradients(attend(inputs, cells_N2, 3), inputs) for inputs in (qkv, widened))
    assert [tensor.dtype for tensor in got] == [dtype] * 4
    assert torch.equal(got[0], expected[0].to(dtype))
    # What comes back was rounded once on its way in and once on its way out.
    assert_near(got[1:] + got[:1], expected[1:] + expected[:1], 3 * torch.finfo(dtype).eps)


def test_autocast_changes_nothing() -> None:
    cells_N2 = LAYOUTS["tissue with holes"]()
    qkv = random_qkv(3, len(cells_N2), 5, torch.float32)
    expected = with_gradients(attend(qkv, cells_N2, 3, 0.2), qkv)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        inside = attend(qkv, cells_N2, 3)
        backward_inside = with_gradients(inside, qkv)
    plain = with_gradients(attend(qkv, cells_N2, 3), qkv)
    assert inside.dtype == torch.float32
    assert all(torch.equal(one, other) for one, other in zip(backward_inside, plain, strict=True))
    assert not torch.equal(plain[0], expected[0])


def test_inference_mode_gives_the_same() -> None:
    cells_N2 = LAYOUTS["tissue with holes"]()
    qkv = random_qkv(3, len(cells_N2), 5)
    with torch.inference_mode():
        inside = attend(qkv, cells_N2, 3)
        from_inference = attend([tensor.clone() for tensor in qkv], cells_N2.clone(), 3)
    assert torch.equal(inside, attend(qkv, cells_N2, 3))
    assert torch.equal(inside, from_inference)


def test_inputs_need_not_be_contiguous() -> None:
    cells_N2 = LAYOUTS["tissue with holes"]()
    n = len(cells_N2)
    packed_N3Hd = torch.randn(n, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    packed_N3Hd.requires_grad_()
    views = list(packed_N3Hd.permute(1, 2, 0, 3))
    copies = [view.detach().contiguous().requires_grad_() for view in views]
    got_HNd, expected_HNd = attend(views, cells_N2, 3), attend(copies, cells_N2, 3)
    assert torch.equal(got_HNd, expected_HNd)
    # An expanded gradient, as a sum gives it.
    (got,) = torch.autograd.grad(got_HNd.sum(), packed_N3Hd)
    expected = torch.autograd.grad(expected_HNd.sum(), copies)
    assert torch.equal(got, torch.stack(list(expected)).permute(2, 0, 1, 3))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_gradients_of_some_inputs_only(wanted: tuple[int, ...]) -> None:
    cells_N2 = LAYOUTS["scatter"]()
    qkv = random_qkv(3, len(cells_N2), 5)
    _, *expected = with_gradients(attend(qkv, cells_N2, 10), qkv)
    some = [tensor.detach().requires_grad_(i in wanted) for i, tensor in enumerate(qkv)]
    _, *got = with_gradients(attend(some, cells_N2, 10), [some[i] for i in wanted])
    assert all(torch.equal(one, expected[i]) for one, i in zip(got, wanted, strict=True))


def test_the_backward_pass_can_run_twice() -> None:
    cells_N2 = LAYOUTS["tissue with holes"]()
    qkv = random_qkv(3, len(cells_N2), 5)
    out_HNd = attend(qkv, cells_N2, 3, dropout=0.3)
    first = torch.autograd.grad(out_HNd.sum(), qkv, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(out_HNd.sum(), qkv)))


def test_slopes_are_those_of_alibi() -> None:
    assert alibi_slopes(4).tolist() == [0.25, 0.0625, 0.015625, 0.00390625]
    assert alibi_slopes(8).tolist() == [2.0**-h for h in range(1, 9)]
    assert alibi_slopes(3).tolist() == pytest.approx([2 ** (-8 / 3), 2 ** (-16 / 3), 2**-8])


@pytest.mark.parametrize("fault", ["keys", "values", "width", "heads", "layout", "slopes"])
def test_shapes_that_do_not_fit_are_an_error(fault: str) -> None:
    """Without a check, rows of one head would be read as another's."""
    n = 100
    cells_N2 = LAYOUTS["scatter"]()[:n]
    q_HNd, k_HNd, v_HNd = (tensor.detach() for tensor in random_qkv(3, n, 5))
    more = torch.zeros(3, 1, 5, dtype=torch.float64)
    wrong = {
        "keys": (q_HNd, torch.cat([k_HNd, more], dim=1), v_HNd),
        "values": (q_HNd, k_HNd, torch.cat([v_HNd, more], dim=1)),
        "width": (q_HNd, k_HNd, v_HNd[..., :4]),
        "heads": (q_HNd, k_HNd[:2], v_HNd[:2]),
    }
    layout = WindowLayout(cells_N2[:-1] if fault == "layout" else cells_N2, 10)
    with pytest.raises(ValueError, match="do not fit"):
        local_attention(*wrong.get(fault, (q_HNd, k_HNd, v_HNd)), layout, alibi_slopes(1 if fault == "slopes" else 3))


class FailingLayout(WindowLayout):
    """Fails in its third chunk, after ``passes`` whole passes."""

    passes = 0

    def chunks(self, budget: int):  # type: ignore[no-untyped-def]
        for number, chunk in enumerate(super().chunks(budget)):
            if number == 2 and self.passes == 0:
                raise MemoryError("no room for a chunk")
            yield chunk
        self.passes -= 1


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_chunk_that_fails_raises(dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_PAIRS", 3000)
    cells_N2 = LAYOUTS["tissue with holes"]()
    qkv = random_qkv(3, len(cells_N2), 5)
    layout, slopes_H = FailingLayout(cells_N2, 3), alibi_slopes(3)
    torch.manual_seed(0)
    torch.randint(2**62, ())
    state = torch.get_rng_state()
    torch.manual_seed(0)
    with pytest.raises(MemoryError, match="no room"):
        local_attention(*qkv, layout, slopes_H, dropout=dropout)
    if dropout:
        assert torch.equal(torch.get_rng_state(), state)

    layout.passes = 1
    out_HNd = local_attention(*qkv, layout, slopes_H, dropout=dropout)
    with pytest.raises(MemoryError, match="no room"):
        out_HNd.sum().backward()
    assert all(tensor.grad is None for tensor in qkv)


def test_numbers_that_are_not_finite_are_not_hidden() -> None:
    cells_N2 = LAYOUTS["scatter"]()
    qkv = [tensor.detach() for tensor in random_qkv(3, len(cells_N2), 5)]
    qkv[1][1, 7] = math.nan
    near_N = torch.tensor([square <= 100 for square in squared_distances(cells_N2[7:8], cells_N2)[0]])
    out_HNd = attend(qkv, cells_N2, 10)
    is_lost_HN = out_HNd.isnan().all(dim=2)
    assert is_lost_HN[1, near_N].all()
    assert not is_lost_HN[[0, 2]].any()
