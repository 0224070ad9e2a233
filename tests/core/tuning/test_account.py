"""The tracker against sums done by hand."""

import mmap

import pytest
import torch
from torch import nn

from fedpath.core.tuning.account import MemoryTracker

MB = 2**20


def floats(mb: int) -> torch.Tensor:
    return torch.zeros(mb * MB // 4)


def test_counts_what_is_alive_and_remembers_the_most() -> None:
    with MemoryTracker() as tracker:
        first = floats(2)
        second = first + 1
        assert tracker.live == 4 * MB
        del first
        assert tracker.live == 2 * MB
        third = second[: second.numel() // 2].mul_(2)  # a view, in place: nothing new
        assert tracker.live == 2 * MB
        del second
        assert tracker.live == 2 * MB  # the view holds it
        del third
        assert tracker.live == 0
    assert tracker.peak == 4 * MB
    assert max(tracker.course) == 4 * MB


def test_a_backward_pass_is_counted_too() -> None:
    layer = nn.Linear(1024, 1024, bias=False)
    x = torch.zeros(1024, 1024)
    tracker = MemoryTracker()
    tracker.add(layer)
    with tracker:
        layer(x).relu().sum().backward()
    assert tracker.live == 8 * MB  # the weight and its gradient
    # The weight and, in turn, relu's input and output, its output and its gradient, its gradient and the weight's.
    assert 12 * MB <= tracker.peak < 12.1 * MB


def test_what_comes_from_outside_counts_only_when_added_or_written_to() -> None:
    outside = floats(2)
    pages = mmap.mmap(-1, 2 * MB)
    with MemoryTracker() as tracker:
        doubled = outside[: outside.numel() // 2] * 2
        assert tracker.live == 1 * MB
        torch.frombuffer(pages, dtype=torch.float32).fill_(1)
        assert tracker.live == 1 * MB  # written and forgotten
        kept = torch.frombuffer(pages, dtype=torch.float32)
        torch.add(kept, 1, out=kept)
        assert tracker.live == 3 * MB
        del doubled, kept
    assert tracker.live == 0
    assert tracker.peak == 3 * MB


def test_a_limit_ends_in_torch_s_own_error() -> None:
    with MemoryTracker(limit=3 * MB), pytest.raises(torch.OutOfMemoryError, match="3145728 are allowed"):
        torch.cat([floats(1) for _ in range(2)])
