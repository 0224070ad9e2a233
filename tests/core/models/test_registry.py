"""Models by name: the same seed gives the same bits, mistakes are named, and every model keeps the protocol."""

from typing import Any

import pytest
import torch

from fedpath.core.bags import Bag
from fedpath.core.errors import ConfigError
from fedpath.core.models import available_models, build_model
from fedpath.core.models.registry import count_parameters, is_built_in

NAMES = [model.name for model in available_models()]


def state(seed: int) -> dict[str, torch.Tensor]:
    return build_model("acmil", width=16, n_classes=3, options={}, seed=seed).state_dict()


def test_the_seed_alone_decides_the_parameters() -> None:
    torch.manual_seed(1)
    first = state(7)
    torch.manual_seed(2)
    torch.rand(5)
    second, other = state(7), state(8)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_building_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    state(0)
    assert torch.equal(torch.rand(4), expected)


def test_parameters_are_float32_and_finite() -> None:
    for tensor in state(0).values():
        assert tensor.dtype == torch.float32
        assert tensor.isfinite().all()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("acmill", {}, ["model.name", "acmill", "did you mean 'acmil'"]),
        ("ACMIL", {}, ["did you mean 'acmil'"]),
        ("zzz", {}, ["zzz", "choose one of: ", "acmil"]),
        ("acmil", {"n_branch": 3}, ["model.options.n_branch", "did you mean 'n_branches'"]),
        ("acmil", {"zzz": 3}, ["model.options.zzz", "mask_ratio"]),
        ("acmil", {"mask_ratio": 1.0}, ["model.options.mask_ratio = 1.0", "less than 1"]),
        ("acmil", {"n_branches": 0}, ["model.options.n_branches = 0"]),
        ("acmil", {"inner": "many"}, ["model.options.inner = 'many'"]),
        ("acmil", {"input_norm": "batch"}, ["model.options.input_norm = 'batch'", "layer"]),
    ],
)
def test_mistakes_are_named(name: str, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        build_model(name, width=16, n_classes=2, options=options, seed=0)
    for word in words:
        assert word in str(caught.value)


def test_every_model_explains_itself_and_its_options() -> None:
    models = available_models()
    assert "acmil" in [model.name for model in models]
    for model in models:
        assert model.summary
        assert model.source
        assert all(option.description for option in model.options)
        defaults = {option.name: option.default for option in model.options}
        build_model(model.name, width=16, n_classes=2, options=defaults, seed=0)
        assert is_built_in(model.name)
    assert not is_built_in("my-mil")


def make_bag(n: int, width: int = 16, dtype: torch.dtype = torch.float16) -> Bag:
    random = torch.Generator().manual_seed(n)
    features_ND = torch.randn(n, width, generator=random)
    return Bag("slide", features_ND.to(dtype), torch.randint(0, 40, (n, 2), generator=random) * 256, 256)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("input_norm", ["none", "layer", "bag"])
def test_every_model_keeps_the_protocol(name: str, input_norm: str) -> None:
    model = build_model(name, width=16, n_classes=3, options={"input_norm": input_norm}, seed=0)
    groups = [entry for group in model.parameter_groups().values() for entry in group]
    assert sorted(groups) == sorted(model.state_dict())
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())
    for training in (True, False):
        model.train(training)
        for n in (1, 2, 30):
            output = model(make_bag(n))
            assert output.logits_C.shape == (3,)
            assert output.slide_vector_L.ndim == 1
            assert output.attention_KN.shape[1:] == (n,)
            assert (output.attention_KN >= 0).all()
            torch.testing.assert_close(output.attention_KN.sum(dim=1), torch.ones(len(output.attention_KN)))
            torch.testing.assert_close(output.attention_N.sum(), torch.tensor(1.0))
            model.zero_grad()
            loss = model.loss(output, 2, torch.tensor([1.0, 1.0, 0.5]))
            assert loss.shape == ()
            loss.backward()
            gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            assert gradients
            assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", NAMES)
def test_every_model_draws_nothing_in_evaluation(name: str) -> None:
    model, bag = build_model(name, width=16, n_classes=2, seed=0).eval(), make_bag(30)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first, second = model(bag), model(bag)
    assert torch.equal(first.logits_C, second.logits_C)
    assert torch.equal(first.attention_KN, second.attention_KN)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("name", NAMES)
def test_every_model_comes_from_its_seed_and_its_size_is_counted_without_building_it(name: str) -> None:
    one, two = (build_model(name, width=20, n_classes=3, seed=5) for _ in range(2))
    assert all(torch.equal(one.state_dict()[key], value) for key, value in two.state_dict().items())
    count = sum(parameter.numel() for parameter in one.parameters())
    assert count_parameters(name, width=20, n_classes=3) == count
