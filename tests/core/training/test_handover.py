"""What is given to a process of its own arrives, and is copied as little as can be."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_models import make_examples
from torch import Tensor

from fedpath.core.bags import Bag
from fedpath.core.config.clinical import ClinicalSchema, NumberField
from fedpath.core.errors import DataError
from fedpath.core.models import build_model
from fedpath.core.models.registry import available_models, uses_clinical
from fedpath.core.training.engines.handover import memory_file, pack, unpack, views

SCHEMA = ClinicalSchema(
    fields={"age": NumberField(type="number", unit="years", minimum=0, maximum=120, outcome_derived=False)}
)


@pytest.fixture
def file() -> Iterator[int]:
    descriptor = memory_file("test")
    yield descriptor
    os.close(descriptor)


def through(value: object, file: int) -> object:
    return unpack(file, pack(value, file))


def test_tensors_arrive_with_their_types_and_strides_and_share_what_they_shared(file: int) -> None:
    whole = torch.arange(24, dtype=torch.float64).view(4, 6)
    given = {
        "whole": whole,
        "part": whole[1:, ::2],
        "turned": whole.T,
        "half": torch.randn(3).half(),
        "brain": torch.randn(3).bfloat16(),
        "flag": torch.tensor([True, False]),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "words": ["a", 1, None],
    }
    came = through(given, file)
    assert isinstance(came, dict)
    for name, value in given.items():
        if isinstance(value, Tensor):
            assert came[name].dtype == value.dtype
            assert came[name].stride() == value.stride()
            assert torch.equal(came[name], value)
    assert came["words"] == given["words"]
    came["whole"][1, 0] = -1
    assert came["part"][0, 0] == came["turned"][0, 1] == -1
    assert whole[1, 0] == 6  # the receiver writes to pages of its own


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_what_is_mapped_from_a_file_is_mapped_again(tmp_path: Path, file: int, mode: str) -> None:
    path = tmp_path / "pixels.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (300, 64, 64, 3), dtype=np.uint8))
    pixels_NHWC = torch.from_numpy(np.load(path, mmap_mode=mode))  # type: ignore[call-overload]
    bag = Bag("s", torch.zeros(2, 0), torch.zeros(2, 2, dtype=torch.int64), 64, pixels_NHWC=pixels_NHWC[100:102])
    start = pack(bag, file)
    assert os.fstat(file).st_size < 10_000
    came = unpack(file, start)
    assert torch.equal(came.pixels_NHWC, pixels_NHWC[100:102])
    came.pixels_NHWC.zero_()
    assert pixels_NHWC[100:102].any()
    path.rename(tmp_path / "kept.npy")
    np.save(path, np.zeros((300, 64, 64, 3), dtype=np.uint8))
    with pytest.raises(DataError, match=r"pixels\.npy: replaced while it was in use"):
        unpack(file, start)


def test_what_was_changed_after_it_was_mapped_is_copied(tmp_path: Path, file: int) -> None:
    path = tmp_path / "pixels.npy"
    np.save(path, np.zeros(10_000, dtype=np.uint8))
    mapped = torch.from_numpy(np.load(path, mmap_mode="c"))
    mapped[0] = 1
    came = through(mapped, file)
    assert isinstance(came, Tensor)
    assert torch.equal(came, mapped)


def test_every_model_and_its_bags_can_be_handed_over(file: int) -> None:
    bag = make_examples(1)[0].bag
    for info in available_models():
        clinical = SCHEMA if uses_clinical(info.name) else None
        model = build_model(info.name, width=16, n_classes=2, seed=0, clinical=clinical).eval()
        os.ftruncate(file, 0)
        other, its_bag = unpack(file, pack((model, bag), file))
        assert type(other) is type(model)
        with torch.no_grad():
            assert torch.equal(other(its_bag).logits_C, model(bag).logits_C), info.name


def test_views_of_one_file_show_each_other_what_is_written(file: int) -> None:
    like = {"a": torch.zeros(3, 5), "n": torch.tensor(0), "none": torch.zeros(0), "b": torch.zeros(7, dtype=torch.half)}
    here, there = views(file, like), views(file, like)
    for number, tensor in enumerate(here.values(), start=1):
        tensor.fill_(number)
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in there.items()} == {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in like.items() if tensor.numel()
    }
    assert [tensor.flatten()[0].item() for tensor in there.values()] == [1, 2, 3]
