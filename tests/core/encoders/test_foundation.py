"""Encoders trained on pathology: the structures that timm builds by the same options, and names that others publish."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import real_timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fedpath.core.config.stages import TuningSection
from fedpath.core.encoders import PatchEncoder, available, blank_encoder, build_encoder, encoder_sha256, info_of
from fedpath.core.encoders.conch import Conch, LinearQueryPool, QueryPool, StretchedTransformer
from fedpath.core.encoders.names import from_conch, from_swin, from_transformers
from fedpath.core.encoders.resnet import StoredBatchNorm
from fedpath.core.encoders.swin import Swin
from fedpath.core.encoders.vit import VisionTransformer
from fedpath.core.encoders.weights import plain_names
from fedpath.core.errors import ConfigError, DataError

GATED = [info.name for info in available() if info.gated]
# As these models are loaded elsewhere, by timm.create_model.
HUGE: dict[str, Any] = {"mlp_ratio": 5.3375, "global_pool": "", "swiglu": True, "init_values": 1e-5}
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "uni_v1": ("vit_large_patch16_224", {"init_values": 1e-5}),
    "uni_v2": (
        "vit_giant_patch14_224",
        {
            "depth": 24,
            "num_heads": 24,
            "init_values": 1e-5,
            "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2,
            "no_embed_class": True,
            "swiglu": True,
            "reg_tokens": 8,
        },
    ),
    "virchow": ("vit_huge_patch14_224", HUGE),
    "virchow2": ("vit_huge_patch14_224", HUGE | {"reg_tokens": 4}),
    "gigapath": (
        "vit_giant_patch14_dinov2",
        {"img_size": 224, "patch_size": 16, "mlp_ratio": 5.33334, "init_values": 1e-5},
    ),
    "hoptimus0": ("vit_giant_patch14_reg4_dinov2", {"img_size": 224, "init_values": 1e-5}),
    "hoptimus1": ("vit_giant_patch14_reg4_dinov2", {"img_size": 224, "init_values": 1e-5}),
    "phikon": ("vit_base_patch16_224", {}),
    "phikon_v2": ("vit_large_patch16_224", {"init_values": 1.0}),
    "lunit-vits8": ("vit_small_patch8_224", {}),
    "midnight12k": ("vit_giant_patch14_dinov2", {"img_size": 224, "init_values": 1e-5}),
}
PARAMETERS = {
    "uni_v1": 303.4,
    "uni_v2": 681.4,
    "virchow": 631.2,
    "virchow2": 631.2,
    "gigapath": 1135.0,
    "hoptimus0": 1134.8,
    "hoptimus1": 1134.8,
    "phikon": 85.8,
    "phikon_v2": 303.4,
    "ctranspath": 27.5,
    "lunit-vits8": 21.7,
    "midnight12k": 1134.8,
}


def gated_layer(options: dict[str, Any]) -> dict[str, Any]:
    """Return timm's own options."""
    options = dict(options)
    if options.pop("swiglu", False):
        options |= {"mlp_layer": real_timm.timm().layers.SwiGLUPacked, "act_layer": nn.SiLU}
    return options


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def fill(module: nn.Module) -> nn.Module:
    """Fill every tensor with numbers drawn, so that nothing is hidden by a 0 or a 1, in float64."""
    generator = torch.Generator().manual_seed(0)
    module = module.double().eval().requires_grad_(False)
    for name, tensor in sorted(module.state_dict().items()):
        if not tensor.is_floating_point():
            continue
        spread = 0.3 if tensor.ndim < 2 else (2 / tensor[0].numel()) ** 0.5
        tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * spread)
        if name.endswith("running_var"):
            tensor.abs_().add_(0.5)
    return module


def pixels(n: int, edge: int) -> Tensor:
    return torch.rand(n, 3, edge, edge, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("name", OPTIONS)
def test_names_and_shapes_are_timms(name: str) -> None:
    architecture, options = OPTIONS[name]
    timm = real_timm.timm()
    with torch.device("meta"):
        published = timm.create_model(architecture, pretrained=False, num_classes=0, **gated_layer(options))
    assert shapes(blank_encoder(name)) == shapes(published)


@pytest.mark.parametrize(("name", "millions"), PARAMETERS.items())
def test_parameters_are_as_many_as_published(name: str, millions: float) -> None:
    count = sum(parameter.numel() for parameter in blank_encoder(name).parameters())
    assert round(count / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"layer_scale": True}, {"init_values": 1e-5}),
        ({"gated": 24, "registers": 3, "pool": "class+mean"}, {"mlp_ratio": 48 / 12, "swiglu": True, "reg_tokens": 3}),
        (
            {"gated": 16, "registers": 2, "positions": "squares", "layer_scale": True},
            {"mlp_ratio": 32 / 12, "swiglu": True, "reg_tokens": 2, "no_embed_class": True, "init_values": 1e-5},
        ),
        ({"epsilon": 0.1, "pool": "class+mean"}, {"norm_layer": partial(nn.LayerNorm, eps=0.1)}),
    ],
)
def test_features_are_those_of_timms_tokens(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    timm = real_timm.timm()
    published = fill(
        timm.models.vision_transformer.VisionTransformer(
            img_size=56, patch_size=14, embed_dim=12, depth=2, num_heads=3, num_classes=0, **gated_layer(theirs)
        )
    )
    encoder = VisionTransformer(width=12, depth=2, heads=3, patch_px=56, square=14, **ours).double().eval()
    encoder.load_state_dict(published.state_dict())
    rgb = pixels(2, 56)
    tokens = published.forward_features(encoder.prepare(rgb))  # type: ignore[operator]
    expected = tokens[:, 0]
    if ours.get("pool") == "class+mean":
        expected = torch.cat([expected, tokens[:, 1 + ours.get("registers", 0) :].mean(dim=1)], dim=1)
    assert torch.allclose(encoder(rgb), expected, rtol=1e-10, atol=1e-12)
    assert expected.abs().max() > 0.1


class Stem(nn.Module):
    """CTransPath's stem as its authors define it, in the form that timm asks for."""

    def __init__(self, img_size: int, embed_dim: int, norm_layer: Any, **_: Any) -> None:
        super().__init__()
        self.grid_size = (img_size // 4, img_size // 4)
        first, second = embed_dim // 8, embed_dim // 4
        self.proj = nn.Sequential(
            *[nn.Conv2d(3, first, 3, 2, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU()],
            *[nn.Conv2d(first, second, 3, 2, 1, bias=False), nn.BatchNorm2d(second), nn.ReLU()],
            nn.Conv2d(second, embed_dim, 1),
        )
        self.norm = norm_layer(embed_dim)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.proj(pixels_BCHW).permute(0, 2, 3, 1))
        return normed


def timm_swin(width: int, depths: tuple[int, ...], heads: tuple[int, ...], edge: int) -> nn.Module:
    swin: nn.Module = real_timm.timm().models.swin_transformer.SwinTransformer(
        img_size=edge, embed_dim=width, depths=depths, num_heads=heads, num_classes=0, embed_layer=Stem
    )
    return swin


def test_windows_shifts_and_merges_are_timms() -> None:
    shape = (16, (2, 3, 2, 2), (1, 2, 4, 2))
    published = fill(timm_swin(*shape, 224))
    encoder = Swin(*shape, patch_px=224).double().eval()
    # timm's names, which count a merge to the layer above; counters of batches are left out when a file is read.
    state = {n: t for n, t in from_swin(published.state_dict()).items() if not n.endswith("num_batches_tracked")}
    encoder.load_state_dict(state)
    rgb = pixels(2, 224)
    expected = published(encoder.prepare(rgb))
    assert expected.shape == (2, 128)
    assert torch.allclose(encoder(rgb), expected, rtol=1e-9, atol=1e-11)
    assert isinstance(encoder.patch_embed.proj[1], StoredBatchNorm)
    with pytest.raises(ConfigError, match="patches of 256×256 px: this encoder takes 224×224 px"):
        encoder(pixels(1, 256))


def test_ctranspath_has_the_published_names() -> None:
    encoder = blank_encoder("ctranspath")
    found = shapes(encoder)
    assert found["patch_embed.proj.6.weight"] == (96, 24, 1, 1)
    assert found["layers.0.downsample.reduction.weight"] == (192, 384)
    assert found["layers.2.blocks.5.attn.relative_position_bias_table"] == (169, 12)
    assert not any(name.startswith("layers.3.downsample") for name in found)


# --- CONCH ------------------------------------------------------------------------------------------------------------


def attention(query: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """Return the answer (D) to one query (D) of keys and values (T, D), head by head."""
    answers = []
    for q, k, v in zip(query.chunk(heads), keys.chunk(heads, dim=1), values.chunk(heads, dim=1), strict=True):
        weights = torch.softmax(k @ q / len(q) ** 0.5, dim=0)
        answers.append(weights @ v)
    return torch.cat(answers)


def normed(tokens: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    centred = tokens - tokens.mean(dim=-1, keepdim=True)
    spread = (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    return centred / spread * state[f"{name}.weight"] + state[f"{name}.bias"]


def test_the_query_of_conch_attends_as_defined() -> None:
    pool = fill(QueryPool(16, 12))
    state, tokens = pool.state_dict(), torch.randn(3, 7, 12, dtype=torch.float64)
    q_bias, k_bias, v_bias = state["attn.in_proj_bias"].chunk(3)
    for found, patch in zip(pool(tokens), tokens, strict=True):
        keys = normed(patch, state, "ln_k")
        query = state["attn.q_proj_weight"] @ normed(state["query"], state, "ln_q")[0] + q_bias
        answer = attention(
            query,
            keys @ state["attn.k_proj_weight"].T + k_bias,
            keys @ state["attn.v_proj_weight"].T + v_bias,
            heads=8,
        )
        expected = state["attn.out_proj.weight"] @ answer + state["attn.out_proj.bias"]
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_the_query_of_conch_v15_attends_as_defined() -> None:
    pool = fill(LinearQueryPool(16, 12))
    state, tokens = pool.state_dict(), torch.randn(3, 7, 12, dtype=torch.float64)
    for found, patch in zip(pool(tokens), tokens, strict=True):
        keys, values = (normed(patch, state, "ln_k") @ state["to_kv.weight"].T).chunk(2, dim=1)
        query = state["to_q.weight"] @ normed(state["query"], state, "ln_q")[0]
        expected = state["to_out.weight"] @ attention(query, keys, values, heads=8)
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_stretched_positions_are_bicubic_and_the_rest_is_a_transformer() -> None:
    stretched = fill(StretchedTransformer(learned_px=32, patch_px=64, square=8, width=12, depth=1, heads=3))
    plain = VisionTransformer(width=12, depth=1, heads=3, patch_px=64, square=8).double().eval()
    state = stretched.state_dict()
    grid = state["pos_embed"][0, 1:].reshape(4, 4, 12).permute(2, 0, 1)[None].float()
    # Places i of 8 are read at (i + 0.5) · 4 / 8.1 − 0.5 of the 4 learned ones: DINO's tenth of a square is kept.
    wide = torch.nn.functional.interpolate(grid, scale_factor=(8.1 / 4, 8.1 / 4), mode="bicubic")[0].double()
    positions = torch.cat([state["pos_embed"][:, :1], wide.permute(1, 2, 0).reshape(1, 64, 12)], dim=1)
    plain.load_state_dict(state | {"pos_embed": positions})
    rgb = pixels(2, 64)
    assert torch.allclose(stretched(rgb), plain(rgb), rtol=1e-10, atol=1e-12)
    assert stretched.state_dict()["pos_embed"].shape == (1, 17, 12)


@pytest.mark.parametrize("pool", ["torch", "linear"])
def test_conch_pools_all_of_the_trunks_normed_tokens(pool: Any) -> None:
    trunk = VisionTransformer(width=12, depth=2, heads=3, patch_px=32, square=8)
    encoder = fill(Conch(trunk, pool, 16, 12))
    assert isinstance(encoder, Conch)
    rgb = pixels(2, 32)
    hidden = trunk.run_stages((trunk.prepare(rgb),), 0, 3)[0]
    tokens = normed_by(trunk.norm, hidden)
    expected = encoder.ln_contrast(encoder.attn_pool_contrast(tokens))
    assert torch.allclose(encoder(rgb), expected, rtol=1e-10, atol=1e-12)


def normed_by(norm: nn.LayerNorm, tokens: Tensor) -> Tensor:
    out: Tensor = norm(tokens)
    return out


def test_conch_is_read_from_a_file_with_its_tower_of_texts() -> None:
    blank = shapes(blank_encoder("conch_v1"))
    published = {f"visual.{name}": torch.empty(shape, device="meta") for name, shape in blank.items()}
    assert from_conch(published).keys() == blank.keys()
    assert from_conch(from_conch(published)).keys() == blank.keys()
    assert blank["attn_pool_contrast.attn.q_proj_weight"] == (512, 512)
    assert blank["attn_pool_contrast.attn.k_proj_weight"] == (512, 768)
    assert blank["trunk.pos_embed"] == (1, 785, 768)
    assert shapes(blank_encoder("conch_v15"))["trunk.pos_embed"] == (1, 197, 1024)


# --- names of transformers --------------------------------------------------------------------------------------------


def as_transformers_names(state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Return a state under the names of Hugging Face's ViTModel or Dinov2Model."""
    if kind == "vit":
        names = {"norm1": "layernorm_before", "norm2": "layernorm_after"}
        names |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    else:
        names = {"ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1"}
        if kind == "dinov2 gated":
            names |= {"mlp.fc1": "mlp.weights_in", "mlp.fc2": "mlp.weights_out"}
    names |= {"attn.proj": "attention.output.dense"}
    top = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    found = {}
    for name, tensor in state.items():
        if name in top:
            found[top[name]] = tensor
            continue
        block, rest = re.fullmatch(r"blocks\.(\d+)\.(.+)", name).groups()  # type: ignore[union-attr]
        at = f"encoder.layer.{block}"
        if rest.startswith("attn.qkv."):
            for part, values in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                found[f"{at}.attention.attention.{part}.{rest.removeprefix('attn.qkv.')}"] = values
            continue
        for ours, theirs in names.items():
            if rest.startswith(ours):
                rest = theirs + rest.removeprefix(ours)
                break
        found[f"{at}.{rest}"] = tensor
    return found


@pytest.mark.parametrize("prefix", ["", "vit.", "model."])
@pytest.mark.parametrize(
    ("kind", "options"),
    [("vit", {}), ("dinov2", {"layer_scale": True}), ("dinov2 gated", {"layer_scale": True, "gated": 8})],
)
def test_names_of_transformers_are_brought_to_ours(kind: str, options: dict[str, Any], prefix: str) -> None:
    encoder = fill(VisionTransformer(width=12, depth=2, heads=3, patch_px=32, **options))
    state = dict(encoder.state_dict())
    published = {prefix + name: tensor for name, tensor in as_transformers_names(state, kind).items()}
    found = from_transformers(plain_names(Path("weights"), published))
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert from_transformers(state).keys() == state.keys()


# --- files ------------------------------------------------------------------------------------------------------------


def drawn(encoder: PatchEncoder) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {n: torch.rand(t.shape, generator=generator) * 0.02 + 0.01 for n, t in encoder.state_dict().items()}


def test_ctranspath_is_read_as_its_authors_saved_it(tmp_path: Path) -> None:
    state = drawn(blank_encoder("ctranspath"))
    tables = {"layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49)}
    tables |= {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49, dtype=torch.int64)}
    counters = {"patch_embed.proj.1.num_batches_tracked": torch.tensor(5), "head.weight": torch.ones(2, 768)}
    torch.save({"model": state | tables | counters}, tmp_path / "ctranspath.pth")
    found = build_encoder("ctranspath", tmp_path / "ctranspath.pth")
    assert found.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.state_dict().items())
    newer = {
        re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", n): t
        for n, t in state.items()
    }
    save_file(newer, tmp_path / "timm.safetensors")
    assert encoder_sha256(build_encoder("ctranspath", tmp_path / "timm.safetensors")) == encoder_sha256(found)


def test_a_file_of_another_encoder_is_named_with_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "lunit.pth"
    torch.save(drawn(blank_encoder("lunit-vits8")), path)
    assert build_encoder("lunit-vits8", path).width == 384
    with pytest.raises(DataError, match=r"it lacks blocks\.0\.ls1\.gamma, .* and 189 more") as caught:
        build_encoder("uni_v1", path)
    assert str(path) in caught.value.message
    with pytest.raises(
        DataError, match=r"patch_embed.proj.weight is 384×3×8×8, this encoder's is 384×3×16×16|pos_embed"
    ):
        build_encoder("vit-small-16", path)


@pytest.mark.parametrize("name", GATED)
def test_a_gated_encoder_without_weights_names_page_licence_and_command(name: str) -> None:
    with pytest.raises(ConfigError, match=f"encoder '{name}' comes without weights") as caught:
        build_encoder(name)
    info = info_of(name)
    assert info.licence in caught.value.message
    assert "https://huggingface.co/" in caught.value.remedy
    assert f"--encoder {name} --weights FILE" in caught.value.remedy


def test_other_names_mean_the_same_encoder() -> None:
    for info in available():
        for alias in info.aliases:
            assert info_of(alias) == info
    assert info_of("uni").name == "uni_v1"
    aliases = [alias for info in available() for alias in info.aliases]
    assert len(set(aliases) | {info.name for info in available()}) == len(aliases) + len(available())


@pytest.mark.parametrize("name", ["uni_v2", "conch_v15", "ctranspath"])
def test_attention_layers_can_have_adapters(name: str) -> None:
    lora = TuningSection(adapter="lora", rank=2)
    names = blank_encoder(name, lora).state_dict().keys() - blank_encoder(name).state_dict().keys()
    blocks = {"uni_v2": 24, "conch_v15": 24, "ctranspath": 12}[name]
    assert len(names) == blocks * 2 * 3
