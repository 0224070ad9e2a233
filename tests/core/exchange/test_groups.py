"""A model as named arrays by group, and back."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedpath.core.bags import Bag
from fedpath.core.errors import RefusedError
from fedpath.core.exchange.groups import group_of, load_arrays, to_arrays
from fedpath.core.exchange.wire import hash_arrays
from fedpath.core.models import BagModel, BagOutput, build_model


def acmil(seed: int, **options: object) -> BagModel:
    return build_model("acmil", width=6, n_classes=2, options={"inner": 4, "attention": 3} | options, seed=seed)


class TwoGroups(BagModel):
    """A model with two groups, a buffer that is a single number, and a half-precision parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(3)
        self.scale = nn.Parameter(torch.full((2,), 0.5, dtype=torch.float16))

    def forward(self, bag: Bag) -> BagOutput:
        raise NotImplementedError

    def loss(self, output: BagOutput, target: int, class_weights_C: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def parameter_groups(self) -> dict[str, list[str]]:
        names = list(self.state_dict())
        return {
            "image": [name for name in names if not name.startswith("norm.")],
            "norm": [name for name in names if name.startswith("norm.")],
        }


def test_acmil_goes_and_comes_back() -> None:
    for options in ({}, {"input_norm": "layer"}):
        one, other = acmil(1, **options), acmil(2, **options)
        arrays = to_arrays(one)
        assert all(array.dtype == np.float32 for array in arrays.values())
        assert {group_of(name) for name in arrays} == {"image"}
        assert {name.partition("/")[2] for name in arrays} == set(one.state_dict())
        assert hash_arrays(arrays) != hash_arrays(to_arrays(other))
        load_arrays(other, arrays)
        assert hash_arrays(to_arrays(other)) == hash_arrays(arrays)
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name])


def test_arrays_are_copies_in_both_directions() -> None:
    model = acmil(1)
    arrays = to_arrays(model)
    before = hash_arrays(arrays)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert hash_arrays(arrays) == before
    load_arrays(model, arrays)
    for array in arrays.values():
        array += 1
    assert hash_arrays(to_arrays(model)) == before


def test_loading_keeps_training_possible() -> None:
    model = acmil(1)
    load_arrays(model, to_arrays(acmil(2)))
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())


def test_any_group_can_go_alone() -> None:
    model = TwoGroups()
    assert set(to_arrays(model, ["norm"])) == {f"norm/{name}" for name in model.state_dict() if "norm" in name}
    assert to_arrays(model, []) == {}
    assert to_arrays(model).keys() == to_arrays(model, ["norm", "image"]).keys()


def test_single_numbers_and_other_types_come_back() -> None:
    model, other = TwoGroups(), TwoGroups()
    model.norm.num_batches_tracked.fill_(7)
    arrays = to_arrays(model)
    assert arrays["norm/norm.num_batches_tracked"].shape == ()
    load_arrays(other, arrays)
    assert other.norm.num_batches_tracked.item() == 7
    assert other.scale.dtype == torch.float16
    assert torch.equal(other.scale, model.scale)


def test_views_load() -> None:
    model = acmil(1)
    arrays = to_arrays(acmil(2))
    expected = hash_arrays(arrays)
    for name, array in arrays.items():
        arrays[name] = np.asfortranarray(array)
    load_arrays(model, arrays)
    assert hash_arrays(to_arrays(model)) == expected


def test_a_missing_parameter_is_named_and_nothing_is_loaded() -> None:
    model = acmil(1)
    before = hash_arrays(to_arrays(model))
    arrays = to_arrays(acmil(2))
    del arrays["image/reduce.weight"]
    with pytest.raises(RefusedError, match=r"other parameters than this one: image/reduce\.weight"):
        load_arrays(model, arrays)
    with pytest.raises(RefusedError, match="other parameters"):
        load_arrays(model, {})
    assert hash_arrays(to_arrays(model)) == before


def test_an_extra_parameter_is_named() -> None:
    arrays = to_arrays(acmil(2)) | {"image/backdoor": np.zeros(3, dtype=np.float32)}
    with pytest.raises(RefusedError, match=r"other parameters than this one: image/backdoor") as caught:
        load_arrays(acmil(1), arrays)
    assert "[model]" in caught.value.remedy


def test_the_same_parameter_of_another_group_is_another() -> None:
    arrays = {name.replace("image/", "prompt/"): array for name, array in to_arrays(acmil(2)).items()}
    with pytest.raises(RefusedError, match="other parameters"):
        load_arrays(acmil(1), arrays)


def test_another_shape_is_named_and_nothing_is_loaded() -> None:
    model = acmil(1)
    before = hash_arrays(to_arrays(model))
    with pytest.raises(RefusedError, match=r"parameter image/\S+ came with shape \(\d.*\), here it is \(") as caught:
        load_arrays(model, to_arrays(acmil(2, inner=5)))
    assert "width" in caught.value.remedy
    arrays = to_arrays(acmil(2))
    arrays["image/slide_head.bias"] = arrays["image/slide_head.bias"][:1]  # would broadcast
    with pytest.raises(RefusedError, match=r"image/slide_head\.bias came with shape \(1,\), here it is \(2,\)"):
        load_arrays(model, arrays)
    assert hash_arrays(to_arrays(model)) == before


def test_the_group_is_what_stands_before_the_first_slash() -> None:
    assert [group_of(name) for name in ("image/a", "image/a/b", "image", "")] == ["image", "image", "image", ""]
