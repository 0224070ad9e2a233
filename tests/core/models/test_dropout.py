"""Masks of one byte an element: exact shares, one generator, one seed."""

import pytest
import torch

from fedpath.core.models.dropout import drop_, keep_mask, kept_share
from fedpath.core.models.memory import Scratch


@pytest.mark.parametrize(
    ("rate", "dropped"), [(0.0, 0), (0.001, 0), (0.1, 26), (0.25, 64), (0.5, 128), (0.9, 230), (0.999, 255)]
)
def test_a_rate_is_rounded_to_256ths_and_never_drops_everything(rate: float, dropped: int) -> None:
    assert kept_share(rate) == 1 - dropped / 256


@pytest.mark.parametrize("rate", [-0.1, 1.0, 7.0])
def test_a_rate_outside_its_range_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="dropout rate"):
        kept_share(rate)


@pytest.mark.parametrize("rate", [0.0, 0.004, 0.1, 0.25, 0.5, 0.75, 0.999])
def test_the_share_of_ones_is_the_stated_one(rate: float) -> None:
    torch.manual_seed(0)
    mask = keep_mask((1000, 1000), rate)
    assert mask.dtype == torch.uint8
    assert mask.max() <= 1
    kept, deviation = kept_share(rate), (kept_share(rate) * (1 - kept_share(rate)) / 1e6) ** 0.5
    assert abs(mask.double().mean().item() - kept) <= 5 * deviation
    # No column of bytes, no bit of the integers behind them, is special.
    assert (mask.double().mean(dim=0) - kept).abs().max() <= 5 * 1000**0.5 * deviation


def test_a_byte_decides_one_element() -> None:
    torch.manual_seed(0)
    words = torch.empty(4, dtype=torch.int64).random_(-(2**63), None)
    torch.manual_seed(0)
    assert keep_mask((4, 7), 0.3).flatten().tolist() == [int(b < 179) for b in words.view(torch.uint8).tolist()[:28]]


@pytest.mark.parametrize(("rate", "per_byte"), [(0.5, 8), (0.25, 4), (0.75, 4), (0.125, 2), (0.0625, 2), (0.1, 1)])
def test_no_more_bits_are_drawn_than_decide(rate: float, per_byte: int) -> None:
    torch.manual_seed(0)
    keep_mask((64, 64), rate)
    after = torch.rand(1)
    torch.manual_seed(0)
    torch.empty(64 * 64 // per_byte // 8, dtype=torch.int64).random_(-(2**63), None)
    assert torch.equal(torch.rand(1), after)


def test_elements_of_one_byte_are_independent() -> None:
    torch.manual_seed(0)
    quarters = keep_mask((4, 100_000), 0.25).double()
    correlation = torch.corrcoef(quarters) - torch.eye(4)
    assert correlation.abs().max() < 5 / 100_000**0.5


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (16, 8), (0, 4)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    assert keep_mask(shape, 0.5).shape == shape


def test_the_seed_decides_the_mask() -> None:
    torch.manual_seed(4)
    first, second = keep_mask((10, 8), 0.3), keep_mask((10, 8), 0.3)
    torch.manual_seed(4)
    assert torch.equal(keep_mask((10, 8), 0.3), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_drops_in_place_what_the_mask_drops(dtype: torch.dtype) -> None:
    values = torch.randn(30, 20).to(dtype)
    torch.manual_seed(1)
    mask = keep_mask((30, 20), 0.4)
    torch.manual_seed(1)
    dropped = values.clone()
    assert drop_(dropped, 0.4, Scratch(dropped.device)) is dropped
    assert torch.equal(dropped, values * mask)
