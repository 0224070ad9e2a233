"""Large arrays get the memory of freed ones, and never that of living ones."""

import mmap

import pytest
import torch

from fedpath.core.models import memory
from fedpath.core.models.memory import Scratch, large_empty

CPU = torch.device("cpu")
MB = 2**20

kept = pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="Linux alone keeps memory")


@pytest.fixture(autouse=True)
def _nothing_kept() -> None:
    memory._unused.clear()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(0,), (3, 5), (3000, 1024), (4 * MB,)])
def test_arrays_of_any_shape_hold_what_is_written(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    array = large_empty(shape, dtype, CPU)
    assert (array.shape, array.dtype) == (torch.Size(shape), dtype)
    assert array.is_contiguous()
    assert (array.fill_(7) == 7).all()


@kept
def test_freed_memory_serves_the_next_array_that_it_suffices_for() -> None:
    one, other = large_empty((8 * MB,), torch.uint8, CPU), large_empty((4 * MB,), torch.uint8, CPU)
    addresses = one.data_ptr(), other.data_ptr()
    part = other[5:]
    del one, other
    assert large_empty((3 * MB,), torch.uint8, CPU).data_ptr() == addresses[0]  # a view of the other lives
    del part
    assert large_empty((3 * MB,), torch.uint8, CPU).data_ptr() == addresses[1]  # the smallest that suffices


@kept
def test_no_more_is_kept_than_was_needed_at_once() -> None:
    for size in range(3, 40):
        pair = large_empty((size * MB,), torch.uint8, CPU), large_empty((size * MB,), torch.uint8, CPU)
        del pair
    assert sorted(len(pages) for pages in memory._unused) == [39 * MB, 39 * MB]


def test_living_arrays_never_share_memory() -> None:
    generator = torch.Generator().manual_seed(0)
    living: dict[int, torch.Tensor] = {}
    for step in range(200):
        slot = int(torch.randint(6, (), generator=generator))
        living[slot] = large_empty((int(torch.randint(1, 9 * MB, (), generator=generator)),), torch.uint8, CPU)
        living[slot][[0, -1]] = slot
        assert all((array[[0, -1]] == owner).all() for owner, array in living.items()), step


def test_a_scratch_buffer_serves_shapes_and_types_under_one_name() -> None:
    scratch = Scratch(CPU)
    first = scratch("a", (4, 8), torch.float32)
    assert scratch("a", (4, 8), torch.float32) is first
    assert scratch("a", (2, 8), torch.float32).data_ptr() == first.data_ptr()
    assert scratch("b", (4, 8), torch.float32).data_ptr() != first.data_ptr()
    assert scratch("a", (16,), torch.int16).data_ptr() == first.data_ptr()
    assert scratch("a", (40, 8), torch.float64).shape == (40, 8)
    assert Scratch(CPU, torch.float64)("a", (2,)).dtype == torch.float64
