"""Models by name: the same seed gives the same bits, mistakes are named. See also test_every_model.py."""

from typing import Any

import pytest
import torch

from fedpath.core.errors import ConfigError
from fedpath.core.models import available_models, build_model
from fedpath.core.models.multimodal.bd import Bd
from fedpath.core.models.registry import NOMINAL_CLINICAL, count_parameters, is_built_in, uses_clinical

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
        build_model(model.name, width=16, n_classes=2, options=defaults, seed=0, clinical=NOMINAL_CLINICAL)
        assert is_built_in(model.name)
    assert not is_built_in("my-mil")


@pytest.mark.parametrize("name", NAMES)
def test_every_model_comes_from_its_seed_and_is_counted_without_being_built(name: str) -> None:
    one, two = (build_model(name, width=20, n_classes=3, seed=5, clinical=NOMINAL_CLINICAL) for _ in range(2))
    assert all(torch.equal(one.state_dict()[key], value) for key, value in two.state_dict().items())
    count = sum(parameter.numel() for parameter in one.parameters())
    assert count_parameters(name, width=20, n_classes=3) == count


CLINICAL = {"bd", "clinical-only", "ensemble", "fill-autoencoder", "fill-mean", "fill-zero"}
ENCODERS = [model.name for model in available_models() if model.is_encoder]


def test_models_that_read_clinical_data_need_its_fields() -> None:
    assert {model.name for model in available_models() if model.uses_clinical} == CLINICAL
    assert {name for name in [*NAMES, "my-mil"] if uses_clinical(name)} == CLINICAL
    for name in CLINICAL:
        with pytest.raises(ConfigError, match=rf"'{name}' reads clinical data.*\[clinical.fields.NAME\]"):
            build_model(name, width=16, n_classes=2, seed=0)
    build_model("image-only", width=16, n_classes=2, seed=0)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_any_model_of_slides_alone_is_an_encoder(encoder: str) -> None:
    options = {"encoder": encoder}
    model = build_model("bd", width=16, n_classes=3, options=options, seed=2, clinical=NOMINAL_CLINICAL)
    alone = build_model(encoder, width=16, n_classes=3, seed=2)
    assert isinstance(model, Bd)
    assert type(model.encoder) is type(alone)
    # The encoder is drawn first, so it starts as it would by itself.
    assert all(torch.equal(model.encoder.state_dict()[key], tensor) for key, tensor in alone.state_dict().items())
    assert model.slide_width == alone.slide_width > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoder": "abmill"}, ["model.options.encoder = 'abmill'", "no such model", "did you mean 'abmil'"]),
        ({"encoder": "zzz"}, ["model.options.encoder = 'zzz'", "choose one of: abmil, "]),
        ({"encoder": "bd"}, ["model.options.encoder = 'bd'", "no encoder of slides alone"]),
        ({"encoder": "image-only"}, ["model.options.encoder = 'image-only'", "no encoder of slides alone"]),
        ({"encoder": 3}, ["model.options.encoder = 3"]),
        ({"encoder_options": "many"}, ["model.options.encoder_options = 'many'"]),
        ({"encoder_option": {}}, ["model.options.encoder_option", "did you mean 'encoder_options'"]),
        ({"encoder_options": {"iner": 3}}, ["model.options.encoder_options.iner", "'abmil'", "did you mean 'inner'"]),
        (
            {"encoder_options": {"inner": 0}},
            ["model.options.encoder_options.inner = 0", "[model.options.encoder_options]"],
        ),
        (
            {"encoder": "longmil", "encoder_options": {"inner": 7}},
            ["model.options.encoder_options.inner = 7", "multiple of heads", "take inner = 8"],
        ),
    ],
)
@pytest.mark.parametrize("name", ["bd", "image-only", "fill-mean"])
def test_mistakes_about_the_encoder_are_named(name: str, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        build_model(name, width=16, n_classes=2, options=options, seed=0, clinical=NOMINAL_CLINICAL)
    for word in words:
        assert word in str(caught.value)
