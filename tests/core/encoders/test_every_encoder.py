"""What holds for each encoder: stages, batches, gradients, blank structures."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedpath.core.config.stages import TuningSection
from fedpath.core.encoders import (
    PatchEncoder,
    available,
    blank_encoder,
    build_encoder,
    encoder_sha256,
    first_trainable_stage,
    info_of,
    trainable_names,
)
from fedpath.core.errors import ConfigError

NAMES = [info.name for info in available()]
WITH_WEIGHTS = [info.name for info in available() if not info.needs_weights]


def colours(n: int, edge: int = 128, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, 3, edge, edge, generator=torch.Generator().manual_seed(1), dtype=dtype)


def of_stage(encoder: PatchEncoder, index: int) -> list[Tensor]:
    parts = encoder.stage_modules(index)
    return [p for part in parts for p in ([part] if isinstance(part, Tensor) else part.parameters())]


@pytest.mark.parametrize("name", NAMES)
def test_the_stages_are_the_whole_encoder(name: str) -> None:
    encoder, info = blank_encoder(name), info_of(name)
    parts = [id(parameter) for index in range(len(encoder.stage_names)) for parameter in of_stage(encoder, index)]
    assert len(parts) == len(set(parts))
    assert set(parts) == {id(parameter) for parameter in encoder.parameters()}
    assert encoder.width == info.width
    assert 1 <= info.trainable_stages <= len(encoder.stage_names)
    assert encoder(colours(2, info.patch_px or 64).to("meta")).shape == (2, info.width)


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_stages_can_be_run_apart(name: str) -> None:
    encoder, rgb = build_encoder(name), colours(3)
    whole, last = encoder(rgb), len(encoder.stage_names)
    for border in range(last + 1):
        hidden = encoder.run_stages((encoder.prepare(rgb),), 0, border)
        assert all(len(tensor) == 3 for tensor in hidden)
        assert torch.equal(encoder.run_stages(hidden, border, last)[0], whole)


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_features_do_not_depend_on_the_batch_or_the_mode(name: str) -> None:
    encoder, rgb = build_encoder(name).double(), colours(4, dtype=torch.float64)
    before = rgb.clone()
    together = encoder(rgb)
    assert torch.equal(rgb, before)
    assert not encoder.train().training
    assert not any(module.training for module in encoder.modules())
    alone = torch.cat([encoder(rgb[index : index + 1]) for index in range(4)])
    assert torch.allclose(together, alone, rtol=1e-10, atol=1e-12)
    assert together.std(dim=0).mean() > 0.01


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_the_same_name_gives_the_same_weights(name: str) -> None:
    torch.manual_seed(0)
    first = encoder_sha256(build_encoder(name))
    torch.manual_seed(1)
    assert encoder_sha256(build_encoder(name)) == first


def test_drawn_weights_are_these() -> None:
    # They decide features that others may have stored: a change here is a change of encoders.
    assert {name: encoder_sha256(build_encoder(name))[:16] for name in WITH_WEIGHTS} == {
        "seeded-conv": "7ba64da6c6f14570",
        "tiny-resnet": "20b8359f308e82b3",
        "tiny-vit": "c805d00866a8a352",
    }


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_gradients_are_right(name: str) -> None:
    """One directional derivative of everything that can be trained, against a central difference in float64."""
    encoder, rgb = build_encoder(name).double(), colours(2, dtype=torch.float64)
    encoder.requires_grad_(True)
    parameters = list(encoder.parameters())
    generator = torch.Generator().manual_seed(2)
    weights_BD = torch.randn(2, encoder.width, generator=generator, dtype=torch.float64)
    directions = [
        torch.randn(p.shape, generator=generator, dtype=torch.float64) * p.std().nan_to_num(0) for p in parameters
    ]

    def value(step: float) -> Tensor:
        moved = {
            key: p.detach() + step * way for (key, p), way in zip(encoder.named_parameters(), directions, strict=True)
        }
        return (torch.func.functional_call(encoder, moved, (rgb,)) * weights_BD).sum()

    (encoder(rgb) * weights_BD).sum().backward()
    slope = torch.stack([(p.grad * way).sum() for p, way in zip(parameters, directions, strict=True)]).sum()
    assert slope.item() == pytest.approx((value(1e-6) - value(-1e-6)).item() / 2e-6, rel=1e-4)


@pytest.mark.parametrize("shade", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_gradients_of_patches_without_structure_are_finite(name: str, shade: float) -> None:
    encoder = build_encoder(name).requires_grad_(True)
    encoder(torch.full((2, 3, 128, 128), shade)).sum().backward()
    gradients = [parameter.grad for parameter in encoder.parameters()]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_mixed_precision_gives_nearly_the_same(name: str) -> None:
    encoder, rgb = build_encoder(name), colours(3)
    exact = encoder(rgb)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = encoder(rgb).float()
    assert (mixed - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_what_is_trained_are_parameters_of_the_last_stages(name: str) -> None:
    encoder, info = blank_encoder(name), info_of(name)
    stages = len(encoder.stage_names)
    for told, count in ((None, info.trainable_stages), (1, 1), (stages, stages)):
        tuning = TuningSection(trainable_stages=told)
        names = trainable_names(encoder, name, tuning)
        parameters = dict(encoder.named_parameters())
        expected = {id(p) for index in range(stages - count, stages) for p in of_stage(encoder, index)}
        assert {id(parameters[found]) for found in names} == expected
        assert first_trainable_stage(encoder, name, tuning) == stages - count
    with pytest.raises(ConfigError, match=rf"trainable_stages = {stages + 1}: encoder '{name}' has {stages} stages"):
        trainable_names(encoder, name, TuningSection(trainable_stages=stages + 1))


@pytest.mark.parametrize(
    ("name", "last"), [("resnet50", {"layer2", "layer3"}), ("resnet50-layer4", {"layer3", "layer4"})]
)
def test_a_residual_network_trains_its_last_two_layers(name: str, last: set[str]) -> None:
    names = trainable_names(blank_encoder(name), name, TuningSection())
    assert {name.partition(".")[0] for name in names} == last
    assert not any("running" in name for name in names)


def test_nothing_asks_for_a_gradient_until_told() -> None:
    for name in WITH_WEIGHTS:
        assert not any(parameter.requires_grad for parameter in build_encoder(name).parameters())


def test_the_documentation_has_every_encoder() -> None:
    page = (Path(__file__).parents[3] / "docs" / "encoders.md").read_text()
    table = page.partition("## The encoders there are\n")[2].partition("\n## ")[0]
    rows = [
        tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in table.splitlines() if line.startswith("| `")
    ]
    assert rows == [
        (
            " ".join(f"`{name}`" for name in (info.name, *info.aliases)),
            str(info.width),
            f"{info.patch_px} px" if info.patch_px else "any from 16 px",
            f"{info.mpp:g}" if info.mpp else "",
            info.architecture,
            ("a file, terms to accept" if info.gated else "a file") if info.needs_weights else "from a seed",
            info.licence,
        )
        for info in available()
    ]
