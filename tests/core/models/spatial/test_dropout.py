"""Dropout of attention probabilities: how many, on average nothing, the same in the backward pass, nothing unasked."""

from collections.abc import Callable

import pytest
import torch
from literal_spatial import scattered_cells
from torch import Tensor

from fedpath.core.models.dropout import kept_share
from fedpath.core.models.spatial import WindowLayout, alibi_slopes, global_attention, local, local_attention

Attend = Callable[..., Tensor]


def near(cells_N2: Tensor) -> Attend:
    def attend(q_HNd: Tensor, k_HNd: Tensor, v_HNd: Tensor, dropout: float) -> Tensor:
        layout = WindowLayout(cells_N2, 3)
        return local_attention(q_HNd, k_HNd, v_HNd, layout, alibi_slopes(len(q_HNd)), dropout=dropout)

    return attend


def everywhere(cells_N2: Tensor) -> Attend:
    def attend(q_HNd: Tensor, k_HNd: Tensor, v_HNd: Tensor, dropout: float) -> Tensor:
        slopes_H = alibi_slopes(len(q_HNd))
        return global_attention(q_HNd, k_HNd, v_HNd, cells_N2, cells_N2, slopes_H, far=100, dropout=dropout)

    return attend


both_forms = pytest.mark.parametrize("form", [near, everywhere])


def probabilities(attend: Attend, heads: int, n: int, dropout: float) -> Tensor:
    """What one-hot values give: (H, N, N)."""
    generator = torch.Generator().manual_seed(0)
    q_HNd, k_HNd = torch.randn(2, heads, n, n, generator=generator, dtype=torch.float64)
    return attend(q_HNd, k_HNd, torch.eye(n, dtype=torch.float64).expand(heads, n, n), dropout)


@both_forms
@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_the_rate_is_the_share_dropped_in_every_head(form: Callable[[Tensor], Attend], rate: float) -> None:
    cells_N2 = torch.zeros(200, 2, dtype=torch.int64)
    torch.manual_seed(0)
    whole_HNN = probabilities(form(cells_N2), 4, 200, 0.0)
    dropped_HNN = probabilities(form(cells_N2), 4, 200, rate)
    share = 1 - kept_share(rate)
    for dropped_NN in dropped_HNN:
        error = ((dropped_NN == 0).double().mean() - share).abs()
        assert error < 4 * (share * (1 - share) / dropped_NN.numel()) ** 0.5
    kept = dropped_HNN != 0
    torch.testing.assert_close(dropped_HNN[kept], whole_HNN[kept] / kept_share(rate))
    # No two heads, and no two queries, share a mask.
    rows = [tuple(row) for row in kept.flatten(0, 1).tolist()]
    assert len(set(rows)) == len(rows)


@both_forms
def test_on_average_nothing_changes(form: Callable[[Tensor], Attend]) -> None:
    cells_N2 = scattered_cells(20, 6)
    torch.manual_seed(0)
    draws = torch.stack([probabilities(form(cells_N2), 2, 20, 0.3) for _ in range(400)])
    expected = probabilities(form(cells_N2), 2, 20, 0.0)
    standard_error = draws.std(dim=0) / 400**0.5
    assert ((draws.mean(dim=0) - expected).abs() <= 5 * standard_error + 1e-12).all()


@both_forms
@pytest.mark.parametrize("pairs", [64, 2**17])
def test_the_backward_pass_has_the_masks_of_the_forward_pass(
    form: Callable[[Tensor], Attend], pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finite differences of a function whose seed is fixed."""
    monkeypatch.setattr(local, "_PAIRS", pairs)
    attend = form(scattered_cells(14, 10))
    inputs = torch.randn(3, 2, 14, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def seeded_attention(*qkv: Tensor) -> Tensor:
        torch.manual_seed(0)
        out: Tensor = attend(*qkv, 0.4)
        torch.manual_seed(12345)  # whatever runs in between
        return out

    assert torch.autograd.gradcheck(seeded_attention, [tensor.clone().requires_grad_() for tensor in inputs])


@both_forms
def test_the_backward_pass_of_several_strips_has_the_masks_of_the_forward_pass(
    form: Callable[[Tensor], Attend],
) -> None:
    """More queries than one strip of the global form holds: the result is linear in v, with dropout's own matrix."""
    n, heads = 300, 2
    attend = form(scattered_cells(n, 20))
    v_HNd = torch.randn(heads, n, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    q_HNd, k_HNd = torch.randn(2, heads, n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.manual_seed(3)
    p_HNN = probabilities(attend, heads, n, 0.3)
    torch.manual_seed(3)
    out_HNd = attend(q_HNd, k_HNd, v_HNd.requires_grad_(), 0.3)
    torch.testing.assert_close(out_HNd, p_HNN @ v_HNd)
    weights_HNd = torch.randn(out_HNd.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (gradient_HNd,) = torch.autograd.grad(out_HNd, v_HNd, weights_HNd)
    torch.testing.assert_close(gradient_HNd, p_HNN.mT @ weights_HNd)


@both_forms
def test_the_same_seed_gives_the_same_bits(form: Callable[[Tensor], Attend]) -> None:
    attend = form(scattered_cells(150, 20))

    def run(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        q_HNd, k_HNd, v_HNd = torch.ones(3, 4, 150, 5).unbind()
        v_HNd = torch.arange(3000.0).view(4, 150, 5).requires_grad_()
        out_HNd = attend(q_HNd, k_HNd, v_HNd, 0.1)
        return [out_HNd, *torch.autograd.grad((out_HNd**2).sum(), v_HNd)]

    assert all(map(torch.equal, run(1), run(1)))
    assert not any(map(torch.equal, run(1), run(2)))


@both_forms
def test_without_dropout_nothing_is_drawn_and_with_it_one_seed(form: Callable[[Tensor], Attend]) -> None:
    attend = form(scattered_cells(150, 20))
    qkv = [tensor.requires_grad_() for tensor in torch.ones(3, 4, 150, 5).unbind()]
    torch.manual_seed(0)
    before = torch.get_rng_state()
    attend(*qkv, 0.0).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)

    torch.randint(2**62, ())
    after = torch.get_rng_state()
    torch.manual_seed(0)
    out_HNd = attend(*qkv, 0.1)
    assert torch.equal(torch.get_rng_state(), after)
    out_HNd.sum().backward()
    assert torch.equal(torch.get_rng_state(), after)


@both_forms
def test_two_calls_have_other_masks(form: Callable[[Tensor], Attend]) -> None:
    attend = form(scattered_cells(150, 20))
    torch.manual_seed(0)
    first, second = (probabilities(attend, 2, 150, 0.5) == 0 for _ in range(2))
    assert not torch.equal(first, second)
