"""Vision transformers in torch alone, with the names of timm's state dicts, without a classifier.

Dosovitskiy et al., An image is worth 16×16 words, ICLR 2021: pre-norm blocks, fused query-key-value, GELU, learned
positions, one class token, whose final state is the feature vector. With ``layer_scale`` (Touvron et al., CaiT, 2021)
each branch of a block is scaled channel by channel, as in most encoders that were trained on pathology.

Variants of the encoders that are published: register tokens beside the class token (Darcet et al., Vision transformers
need registers, ICLR 2024), positions for the squares alone, a gated inner layer, SwiGLU (Shazeer, GLU variants improve
transformer, 2020), and as features the class token beside the mean of the squares' tokens.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpath.core.encoders.base import Hidden, PatchEncoder
from fedpath.core.encoders.colours import IMAGENET, Colours
from fedpath.core.errors import ConfigError

EPSILON = 1e-6
"""Of the layer norms."""


class Attention(nn.Module):
    """Multi-head self-attention of all tokens of a patch."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        """Return (B, T, D)."""
        b, t, width = tokens_BTD.shape
        # 3 × B × heads × T × D/heads
        query, key, value = (
            self.qkv(tokens_BTD).reshape(b, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        mixed_BTD: Tensor = self.proj(mixed.transpose(1, 2).reshape(b, t, width))
        return mixed_BTD


class LayerScale(nn.Module):
    """A factor a channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        """Return tokens scaled."""
        return tokens_BTD * self.gamma


class Mlp(nn.Module):
    """Two layers with GELU between."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        """Return (B, T, D)."""
        out_BTD: Tensor = self.fc2(functional.gelu(self.fc1(tokens_BTD)))
        return out_BTD


class GatedMlp(nn.Module):
    """Two layers; the first gives gates, through SiLU, and what they let through, in that order."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        """Return (B, T, D)."""
        gate, value = self.fc1(tokens_BTD).chunk(2, dim=-1)
        out_BTD: Tensor = self.fc2(functional.silu(gate) * value)
        return out_BTD


class Block(nn.Module):
    """Attention, then an MLP, each after a layer norm and beside a shortcut."""

    def __init__(
        self, width: int, heads: int, layer_scale: bool, gated: int | None = None, epsilon: float = EPSILON
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=epsilon)
        self.attn = Attention(width, heads)
        self.ls1 = LayerScale(width) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=epsilon)
        self.mlp = Mlp(width, 4 * width) if gated is None else GatedMlp(width, gated)
        self.ls2 = LayerScale(width) if layer_scale else nn.Identity()

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        """Return (B, T, D)."""
        tokens_BTD = tokens_BTD + self.ls1(self.attn(self.norm1(tokens_BTD)))
        out_BTD: Tensor = tokens_BTD + self.ls2(self.mlp(self.norm2(tokens_BTD)))
        return out_BTD


class PatchEmbed(nn.Module):
    """Pixels to tokens: each square of the patch by itself."""

    def __init__(self, width: int, square: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, square, stride=square)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Return tokens (B, T, D), row by row."""
        tokens_BTD: Tensor = self.proj(pixels_BCHW).flatten(2).transpose(1, 2)
        return tokens_BTD


class VisionTransformer(PatchEncoder):
    """See the module's docstring. Stages: embed, block-1 …, norm (which hands on the class token)."""

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        patch_px: int,
        square: int = 16,
        layer_scale: bool = False,
        gated: int | None = None,
        registers: int = 0,
        positions: Literal["all", "squares"] = "all",
        pool: Literal["class", "class+mean"] = "class",
        epsilon: float = EPSILON,
        colours: Colours = IMAGENET,
    ) -> None:
        """Make the layers, their numbers to be loaded.

        Args:
            width: of a token, which is D with pool "class"; D is twice as much with "class+mean".
            depth: number of blocks.
            heads: of each block's attention.
            patch_px: edge of a patch in pixels; positions are learned for this one.
            square: edge in pixels of what becomes a token.
            layer_scale: whether blocks scale their branches.
            gated: width of the gated inner layer of a block; None: 4 · width, without gates.
            registers: tokens without content, after the class token.
            positions: whether class token and registers have learned positions too.
            pool: what of the last tokens becomes the features; registers never do.
            epsilon: of the layer norms.
            colours: that the weights expect.
        """
        super().__init__()
        self.width = width if pool == "class" else 2 * width
        self.patch_px = patch_px
        self._colours = colours
        self._first = 1 + registers
        self._positions_first = positions == "all"
        self._mean = pool == "class+mean"
        self.stage_names = ("embed", *(f"block-{index + 1}" for index in range(depth)), "norm")
        self.patch_embed = PatchEmbed(width, square)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if registers:
            self.reg_token = nn.Parameter(torch.zeros(1, registers, width))
        learned = (patch_px // square) ** 2 + (self._first if self._positions_first else 0)
        self.pos_embed = nn.Parameter(torch.zeros(1, learned, width))
        self.blocks = nn.ModuleList(Block(width, heads, layer_scale, gated, epsilon) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=epsilon)

    def prepare(self, rgb_BCHW: Tensor) -> Tensor:
        """Return colours by the mean and spread that the weights expect.

        Raises:
            ConfigError: the patches are of another size than the positions.
        """
        if rgb_BCHW.shape[2:] != (self.patch_px, self.patch_px):
            height, width = rgb_BCHW.shape[2:]
            raise ConfigError(
                f"patches of {width}×{height} px: this encoder knows positions in {self.patch_px}×{self.patch_px} px",
                remedy=f"cut patches of {self.patch_px} px (features.patch_px, --patch)",
            )
        return self._colours.normalised(rgb_BCHW)

    def run_stage(self, index: int, hidden: Hidden) -> Hidden:
        """Run the embedding, one block, or the last norm."""
        (hidden_BTD,) = hidden
        if index == 0:
            return (self._embed(hidden_BTD),)
        if index <= len(self.blocks):
            return (self.blocks[index - 1](hidden_BTD),)
        if not self._mean:
            return (self.norm(hidden_BTD[:, 0]),)
        normed_BTD = self.norm(hidden_BTD)
        return (torch.cat([normed_BTD[:, 0], normed_BTD[:, self._first :].mean(dim=1)], dim=1),)

    def stage_modules(self, index: int) -> list[nn.Module | nn.Parameter]:
        """Return the embedding's modules and parameters, a block, or the last norm."""
        if index == 0:
            registers = [self.reg_token] if self._first > 1 else []
            return [self.patch_embed, self.cls_token, *registers, self.pos_embed]
        return [self.blocks[index - 1] if index <= len(self.blocks) else self.norm]

    def _embed(self, pixels_BCHW: Tensor) -> Tensor:
        """Return the first tokens (B, T, D): class, registers, squares row by row."""
        tokens_BTD: Tensor = self.patch_embed(pixels_BCHW)
        if not self._positions_first:
            tokens_BTD = tokens_BTD + self.pos_embed
        first = [self.cls_token.expand(len(tokens_BTD), -1, -1)]
        if self._first > 1:
            first.append(self.reg_token.expand(len(tokens_BTD), -1, -1))
        tokens_BTD = torch.cat([*first, tokens_BTD], dim=1)
        return tokens_BTD + self.pos_embed if self._positions_first else tokens_BTD
