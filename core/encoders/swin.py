"""CTransPath: a Swin transformer whose squares are embedded by convolutions, with the names of its published file.

Liu et al., Swin transformer, ICCV 2021: attention inside windows of 7 × 7 tokens, every other block's shifted by half a
window, a bias by relative place; between layers, four neighbouring tokens become one. Wang et al., Medical Image
Analysis 2022: three convolutions in place of one for what becomes a token.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpath.core.encoders.base import Hidden, PatchEncoder
from fedpath.core.encoders.colours import IMAGENET
from fedpath.core.encoders.resnet import StoredBatchNorm
from fedpath.core.encoders.vit import Mlp
from fedpath.core.errors import ConfigError

WINDOW = 7
"""Edge of a window, in tokens."""
SQUARE = 4
"""Edge of what becomes a token, in pixels."""


class ConvStem(nn.Module):
    """Two convolutions that halve, one of 1 × 1, a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(3, width // 8, 3, 2, padding=1, bias=False),
            StoredBatchNorm(width // 8),
            nn.ReLU(inplace=True),
            nn.Conv2d(width // 8, width // 4, 3, 2, padding=1, bias=False),
            StoredBatchNorm(width // 4),
            nn.ReLU(inplace=True),
            nn.Conv2d(width // 4, width, 1),
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Return tokens (B, H / 4, W / 4, D)."""
        tokens_BHWD: Tensor = self.norm(self.proj(pixels_BCHW).permute(0, 2, 3, 1))
        return tokens_BHWD


class WindowAttention(nn.Module):
    """Attention among the tokens of a window, with a learned bias by relative place."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, heads))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens_NTD: Tensor, apart_1WTT: Tensor | None) -> Tensor:
        """Return (N, T, D) of N windows; ``apart_1WTT`` says of W windows a patch who may not see whom."""
        n, t, width = tokens_NTD.shape
        # 3 × N × heads × T × D/heads
        query, key, value = (
            self.qkv(tokens_NTD).reshape(n, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        )
        place = torch.arange(WINDOW, device=tokens_NTD.device)
        row, column = place.repeat_interleave(WINDOW), place.repeat(WINDOW)
        index_TT = (row[:, None] - row + WINDOW - 1) * (2 * WINDOW - 1) + column[:, None] - column + WINDOW - 1
        bias_HTT = self.relative_position_bias_table[index_TT].permute(2, 0, 1)
        bias = bias_HTT.unsqueeze(0)  # 1 × heads × T × T, or N × … below
        if apart_1WTT is not None:
            hidden = torch.zeros_like(apart_1WTT, dtype=bias.dtype).masked_fill(apart_1WTT, -100.0)
            bias = (bias + hidden.transpose(0, 1)).repeat(n // hidden.shape[1], 1, 1, 1)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        mixed_NTD: Tensor = self.proj(mixed.transpose(1, 2).reshape(n, t, width))
        return mixed_NTD


class SwinBlock(nn.Module):
    """Attention inside windows, then an MLP, each after a layer norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, shift: int) -> None:
        super().__init__()
        self.shift = shift
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, tokens_BHWD: Tensor) -> Tensor:
        """Return (B, H, W, D)."""
        _, height, across, _ = tokens_BHWD.shape
        # A window as large as all there is has nothing to be shifted to.
        shift = self.shift if height > WINDOW else 0
        normed = self.norm1(tokens_BHWD)
        if shift:
            normed = normed.roll((-shift, -shift), dims=(1, 2))
        mixed = self.attn(_windows(normed), _apart(height, across, shift, normed.device) if shift else None)
        mixed = _back(mixed, height, across)
        if shift:
            mixed = mixed.roll((shift, shift), dims=(1, 2))
        tokens_BHWD = tokens_BHWD + mixed
        out_BHWD: Tensor = tokens_BHWD + self.mlp(self.norm2(tokens_BHWD))
        return out_BHWD


class Merge(nn.Module):
    """Four neighbouring tokens become one of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width)

    def forward(self, tokens_BHWD: Tensor) -> Tensor:
        """Return (B, H / 2, W / 2, 2 D)."""
        four = [tokens_BHWD[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        merged: Tensor = self.reduction(self.norm(torch.cat(four, dim=-1)))
        return merged


class SwinLayer(nn.Module):
    """Blocks, every other one shifted, then a merge if another layer follows."""

    def __init__(self, width: int, depth: int, heads: int, merge: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SwinBlock(width, heads, WINDOW // 2 * (index % 2)) for index in range(depth))
        self.downsample = Merge(width) if merge else None

    def forward(self, tokens_BHWD: Tensor) -> Tensor:
        """Return (B, H, W, D), or with a merge (B, H / 2, W / 2, 2 D)."""
        for block in self.blocks:
            tokens_BHWD = block(tokens_BHWD)
        return tokens_BHWD if self.downsample is None else self.downsample(tokens_BHWD)


class Swin(PatchEncoder):
    """See the module's docstring. Stages: embed, layer-1 …, norm (which hands on the mean of all tokens)."""

    def __init__(self, width: int, depths: Sequence[int], heads: Sequence[int], patch_px: int) -> None:
        """Make the layers, their numbers to be loaded.

        Args:
            width: of the first layer's tokens; each layer doubles it.
            depths: blocks of each layer.
            heads: of each layer's attention.
            patch_px: edge of a patch in pixels: windows must fill every layer's tokens.
        """
        super().__init__()
        last = len(depths) - 1
        self.width = width * 2**last
        self.patch_px = patch_px
        self.stage_names = ("embed", *(f"layer-{index + 1}" for index in range(len(depths))), "norm")
        self.patch_embed = ConvStem(width)
        each = enumerate(zip(depths, heads, strict=True))
        self.layers = nn.ModuleList(SwinLayer(width * 2**i, depth, head, i < last) for i, (depth, head) in each)
        self.norm = nn.LayerNorm(self.width)

    def prepare(self, rgb_BCHW: Tensor) -> Tensor:
        """Return colours by ImageNet's mean and spread.

        Raises:
            ConfigError: the patches are of another size.
        """
        height, across = rgb_BCHW.shape[2:]
        if (height, across) != (self.patch_px, self.patch_px):
            raise ConfigError(
                f"patches of {across}×{height} px: this encoder takes {self.patch_px}×{self.patch_px} px",
                remedy=f"cut patches of {self.patch_px} px (features.patch_px, --patch)",
            )
        return IMAGENET.normalised(rgb_BCHW)

    def run_stage(self, index: int, hidden: Hidden) -> Hidden:
        """Run the stem, one layer, or the last norm."""
        (hidden_BHWD,) = hidden
        if index == 0:
            return (self.patch_embed(hidden_BHWD),)
        if index <= len(self.layers):
            return (self.layers[index - 1](hidden_BHWD),)
        return (self.norm(hidden_BHWD).mean(dim=(1, 2)),)

    def stage_modules(self, index: int) -> list[nn.Module | nn.Parameter]:
        """Return the stem, a layer, or the last norm."""
        if index == 0:
            return [self.patch_embed]
        return [self.layers[index - 1] if index <= len(self.layers) else self.norm]


def _windows(tokens_BHWD: Tensor) -> Tensor:
    """Return windows (B · W, T, D), a patch's row by row."""
    b, height, across, width = tokens_BHWD.shape
    split = tokens_BHWD.reshape(b, height // WINDOW, WINDOW, across // WINDOW, WINDOW, width)
    return split.transpose(2, 3).reshape(-1, WINDOW * WINDOW, width)


def _back(windows_NTD: Tensor, height: int, across: int) -> Tensor:
    split = windows_NTD.reshape(-1, height // WINDOW, across // WINDOW, WINDOW, WINDOW, windows_NTD.shape[-1])
    return split.transpose(2, 3).reshape(-1, height, across, windows_NTD.shape[-1])


def _apart(height: int, across: int, shift: int, device: torch.device) -> Tensor:
    """Return which tokens of a window (1, W, T, T) came together only because the patch was rolled round."""

    def parts(length: int) -> Tensor:
        place = torch.arange(length, device=device)
        return (place >= length - WINDOW).long() + (place >= length - shift).long()

    part_HW = 3 * parts(height)[:, None] + parts(across)
    part_WT = _windows(part_HW[None, :, :, None])[:, :, 0]
    return (part_WT[:, :, None] != part_WT[:, None, :])[None]
