"""Residual networks and transformers against literal definitions, and against the names that others publish."""

import literal_encoders as literal
import numpy as np
import pytest
import torch
from torch import Tensor

from fedpath.core.encoders import PatchEncoder, blank_encoder
from fedpath.core.encoders.lora import add_adapters
from fedpath.core.encoders.resnet import ResNet
from fedpath.core.encoders.vit import VisionTransformer
from fedpath.core.errors import ConfigError


def with_random_numbers(encoder: PatchEncoder, seed: int = 0) -> PatchEncoder:
    """Fill every tensor, so that nothing is hidden by a 0 or a 1, in float64."""
    generator = torch.Generator().manual_seed(seed)
    encoder = encoder.double().eval().requires_grad_(False)
    for name, tensor in encoder.state_dict().items():
        spread = 0.3 if tensor.ndim < 2 or "lora" in name else (2 / tensor[0].numel()) ** 0.5
        tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * spread)
        if name.endswith("running_var"):
            tensor.abs_().add_(0.5)
    return encoder


def numbers(encoder: PatchEncoder) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in encoder.state_dict().items()}


def colours(n: int, edge: int) -> Tensor:
    return torch.rand(n, 3, edge, edge, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("blocks", [(2, 1, 2, 1), (2, 1, 2)])
@pytest.mark.parametrize("edge", [32, 45])
def test_a_residual_network_is_what_the_paper_defines(edge: int, blocks: tuple[int, ...]) -> None:
    encoder, patches = with_random_numbers(ResNet(blocks, channels=2)), colours(2, edge)
    expected = np.stack([literal.resnet(patch.numpy(), numbers(encoder), blocks) for patch in patches])
    found = encoder(patches).numpy()
    assert found.shape == (2, 8 * 2 ** (len(blocks) - 1))
    assert np.abs(expected).max() > 0.1
    assert np.allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layer_scale", [False, True])
@pytest.mark.parametrize("adapters", [False, True])
def test_a_transformer_is_what_the_paper_defines(layer_scale: bool, adapters: bool) -> None:
    encoder: PatchEncoder = VisionTransformer(width=12, depth=2, heads=3, patch_px=48, layer_scale=layer_scale)
    if adapters:
        add_adapters(encoder, rank=2, alpha=3)
    encoder, patches = with_random_numbers(encoder), colours(2, 48)
    expected = np.stack([literal.vit(patch.numpy(), numbers(encoder), depth=2, heads=3) for patch in patches])
    assert np.allclose(encoder(patches).numpy(), expected, rtol=1e-10, atol=1e-12)


def torchvision_resnet50() -> dict[str, tuple[int, ...]]:
    """Return the entries of torchvision's state dict of resnet50, 320 of them, with the classifier's two."""
    entries: dict[str, tuple[int, ...]] = {}

    def conv_and_norm(conv: str, norm: str, out: int, into: int, size: int) -> None:
        entries[f"{conv}.weight"] = (out, into, size, size)
        entries.update({f"{norm}.{part}": (out,) for part in ("weight", "bias", "running_mean", "running_var")})
        entries[f"{norm}.num_batches_tracked"] = ()

    conv_and_norm("conv1", "bn1", 64, 3, 7)
    into = 64
    for layer, (blocks, inside) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)], start=1):
        for block in range(blocks):
            at = f"layer{layer}.{block}"
            conv_and_norm(f"{at}.conv1", f"{at}.bn1", inside, into, 1)
            conv_and_norm(f"{at}.conv2", f"{at}.bn2", inside, inside, 3)
            conv_and_norm(f"{at}.conv3", f"{at}.bn3", 4 * inside, inside, 1)
            if block == 0:
                conv_and_norm(f"{at}.downsample.0", f"{at}.downsample.1", 4 * inside, into, 1)
            into = 4 * inside
    return entries | {"fc.weight": (1000, 2048), "fc.bias": (1000,)}


def timm_vit(width: int, depth: int, layer_scale: bool = False) -> dict[str, tuple[int, ...]]:
    """Return the entries of timm's state dict of vit_*_patch16_224, with the classifier's two."""
    entries: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 197, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
    }
    for block in range(depth):
        at = f"blocks.{block}"
        for norm in ("norm1", "norm2"):
            entries |= {f"{at}.{norm}.weight": (width,), f"{at}.{norm}.bias": (width,)}
        linears = {
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.fc1": (4 * width, width),
            "mlp.fc2": (width, 4 * width),
        }
        for name, shape in linears.items():
            entries |= {f"{at}.{name}.weight": shape, f"{at}.{name}.bias": shape[:1]}
        if layer_scale:
            entries |= {f"{at}.ls1.gamma": (width,), f"{at}.ls2.gamma": (width,)}
    entries |= {"norm.weight": (width,), "norm.bias": (width,)}
    return entries | {"head.weight": (1000, width), "head.bias": (1000,)}


def shapes(encoder: PatchEncoder) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}


def test_resnet50_has_torchvisions_names_and_shapes() -> None:
    published = torchvision_resnet50()
    assert len(published) == 320
    needed = {n: s for n, s in published.items() if not n.startswith("fc.") and not n.endswith("num_batches_tracked")}
    encoder = blank_encoder("resnet50-layer4")
    assert shapes(encoder) == needed
    assert len(list(encoder.parameters())) == 159
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 23_508_032
    assert encoder(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 2048)


def test_resnet50_ends_with_the_third_stage_as_clams_does() -> None:
    encoder = blank_encoder("resnet50")
    expected = {n: s for n, s in shapes(blank_encoder("resnet50-layer4")).items() if not n.startswith("layer4.")}
    assert shapes(encoder) == expected
    # As timm counts `resnet50.tv_in1k` with out_indices=(3,).
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 8_543_296
    assert encoder(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 1024)


@pytest.mark.parametrize(
    ("name", "width", "depth", "parameters"),
    [("vit-small-16", 384, 12, 21_665_664), ("vit-large-16", 1024, 24, 303_301_632)],
)
def test_transformers_have_timms_names_and_shapes(name: str, width: int, depth: int, parameters: int) -> None:
    encoder = blank_encoder(name)
    assert shapes(encoder) == {n: s for n, s in timm_vit(width, depth).items() if not n.startswith("head.")}
    assert sum(parameter.numel() for parameter in encoder.parameters()) == parameters
    assert encoder(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, width)


def test_a_transformer_refuses_patches_of_another_size() -> None:
    encoder = VisionTransformer(width=12, depth=1, heads=3, patch_px=48)
    with pytest.raises(ConfigError, match="patches of 64×48 px: this encoder knows positions in 48×48 px"):
        encoder(torch.rand(1, 3, 48, 64))
