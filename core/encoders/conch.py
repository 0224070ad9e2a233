"""CONCH's image towers: a vision transformer, then one learned query that attends to all its tokens.

Lu et al., A visual-language foundation model for computational pathology, Nature Medicine 2024. The features are the
normed answer to the query, before the projection into the space of texts. Version 1.5 (Ding et al., TITAN, 2024) has
linear layers of its own in place of torch's attention, and positions learned for 224 px that are stretched to 448.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpath.core.encoders.base import Hidden, PatchEncoder
from fedpath.core.encoders.vit import VisionTransformer

HEADS = 8
"""Of the query's attention."""
_STRETCH = 0.1
"""DINO adds this to the squares of an edge before it divides, against rounding; positions shift with it, a little."""


class QueryPool(nn.Module):
    """Version 1: a query, norms, and torch's attention over the tokens."""

    def __init__(self, width: int, before: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, width))
        self.attn = nn.MultiheadAttention(width, HEADS, kdim=before, vdim=before, batch_first=True)
        self.ln_q = nn.LayerNorm(width)
        self.ln_k = nn.LayerNorm(before)

    def forward(self, tokens_BTE: Tensor) -> Tensor:
        """Return (B, D) of tokens (B, T, E)."""
        keys_BTE = self.ln_k(tokens_BTE)
        query_B1D = self.ln_q(self.query).expand(len(tokens_BTE), 1, -1)
        answer_B1D: Tensor = self.attn(query_B1D, keys_BTE, keys_BTE, need_weights=False)[0]
        return answer_B1D[:, 0]


class LinearQueryPool(nn.Module):
    """Version 1.5: the same with linear layers that have no bias, keys and values in one."""

    def __init__(self, width: int, before: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, width))
        self.ln_k = nn.LayerNorm(before)
        self.ln_q = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(before, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)

    def forward(self, tokens_BTE: Tensor) -> Tensor:
        """Return (B, D) of tokens (B, T, E)."""
        query_1D = self.to_q(self.ln_q(self.query))
        key_BTD, value_BTD = self.to_kv(self.ln_k(tokens_BTE)).chunk(2, dim=-1)
        query = query_1D.expand(len(tokens_BTE), 1, -1)
        # B × heads × T × D/heads
        query, key, value = (
            part.reshape(*part.shape[:2], HEADS, -1).transpose(1, 2) for part in (query, key_BTD, value_BTD)
        )
        answer = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        answer_B1D: Tensor = self.to_out(answer)
        return answer_B1D[:, 0]


class StretchedTransformer(VisionTransformer):
    """A transformer whose positions were learned for smaller patches than it reads."""

    def __init__(self, *, learned_px: int, patch_px: int, square: int, **options: int | bool) -> None:
        """Make the layers of a ``VisionTransformer`` for ``learned_px``, which then takes patches of ``patch_px``."""
        super().__init__(patch_px=learned_px, square=square, **options)  # type: ignore[arg-type]
        self.patch_px = patch_px
        self._squares = patch_px // square

    def _embed(self, pixels_BCHW: Tensor) -> Tensor:
        tokens_BTD: Tensor = self.patch_embed(pixels_BCHW)
        edge = round((self.pos_embed.shape[1] - 1) ** 0.5)
        grid_1DHW = self.pos_embed[:, 1:].transpose(1, 2).reshape(1, -1, edge, edge)
        # Half precision has no bicubic kernel on every device; positions are few.
        scale = (self._squares + _STRETCH) / edge
        stretched = functional.interpolate(grid_1DHW.float(), scale_factor=(scale, scale), mode="bicubic")
        positions_1TD = stretched.to(tokens_BTD.dtype).flatten(2).transpose(1, 2)
        first_B1D = (self.cls_token + self.pos_embed[:, :1]).expand(len(tokens_BTD), -1, -1)
        return torch.cat([first_B1D, tokens_BTD + positions_1TD], dim=1)


class Conch(PatchEncoder):
    """A trunk and a query. Stages: those of the trunk, the last of which norms all tokens, then pool."""

    def __init__(
        self, trunk: VisionTransformer, pool: Literal["torch", "linear"], width: int, trunk_width: int
    ) -> None:
        """Make the layers, their numbers to be loaded.

        Args:
            trunk: with the class token alone in front.
            pool: "torch" for version 1, "linear" for 1.5.
            width: D.
            trunk_width: of the trunk's tokens.
        """
        super().__init__()
        self.width = width
        self.stage_names = (*trunk.stage_names, "pool")
        self.trunk = trunk
        self.attn_pool_contrast = (QueryPool if pool == "torch" else LinearQueryPool)(width, trunk_width)
        self.ln_contrast = nn.LayerNorm(width)

    def prepare(self, rgb_BCHW: Tensor) -> Tensor:
        """Return the trunk's input.

        Raises:
            ConfigError: the patches are of another size than the positions.
        """
        return self.trunk.prepare(rgb_BCHW)

    def run_stage(self, index: int, hidden: Hidden) -> Hidden:
        """Run one of the trunk's stages, or the query."""
        if index < len(self.trunk.blocks) + 1:
            return self.trunk.run_stage(index, hidden)
        (hidden_BTE,) = hidden
        if index == len(self.trunk.blocks) + 1:
            return (self.trunk.norm(hidden_BTE),)
        return (self.ln_contrast(self.attn_pool_contrast(hidden_BTE)),)

    def stage_modules(self, index: int) -> list[nn.Module | nn.Parameter]:
        """Return those of the trunk's stage, or the query's attention and norm."""
        if index < len(self.trunk.stage_names):
            return self.trunk.stage_modules(index)
        return [self.attn_pool_contrast, self.ln_contrast]


def conch_v1() -> Conch:
    """Return version 1's structure: ViT-B/16 at 448 px, 512 features."""
    trunk = VisionTransformer(width=768, depth=12, heads=12, patch_px=448)
    return Conch(trunk, "torch", 512, 768)


def conch_v15() -> Conch:
    """Return version 1.5's structure: ViT-L/16 at 448 px, 768 features."""
    trunk = StretchedTransformer(
        learned_px=224, patch_px=448, square=16, width=1024, depth=24, heads=16, layer_scale=True
    )
    return Conch(trunk, "linear", 768, 1024)
