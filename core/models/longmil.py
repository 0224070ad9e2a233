"""LongMIL, a transformer over all patches of a slide that looks near first and far afterwards.

Li et al., "Rethinking Transformer for Long Contextual Histopathology Whole Slide Image Analysis", NeurIPS 2024.

Attention over thousands of patches tends to a low rank: every patch sees the same mean. LongMIL's first blocks attend
only to patches within a radius, which keeps the rank up, and its last block to all; both weaken with distance by 2-D
ALiBi.

    x_NL  = relu(features W + b)
    block:  x = x + proj(attention(LN(x)));  x = x + MLP(LN(x))           local, local, global
    slide_vector = LN(mean over N of x)        logits = head(slide_vector)

The released code forms a bias of N × N; here the local blocks take time and memory O(N), and the global one memory
O(N). Its time is O(N²) (``global_form = "exact"``), or O(N) with ``"windows"``, ours: the patches attend to the mean
key and value of each of a bounded number of windows, which counts for as many patches as it holds:

    score(i, window) = q_i · mean(k) / sqrt(d) − slope · floor(distance to its centre) + log(patches of the window)

This is exact where the patches of a window are alike in key and value and equally far.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedpath.core.bags.bag import Bag
from fedpath.core.errors import ConfigError
from fedpath.core.models.inputs import BagModelOptions, input_norm
from fedpath.core.models.protocol import BagModel, BagOutput
from fedpath.core.models.rows import times
from fedpath.core.models.spatial import (
    WindowLayout,
    Windows,
    alibi_slopes,
    global_attention,
    grid_cells,
    local_attention,
)


class LongMilOptions(BagModelOptions):
    """Options of ``longmil``; the defaults are the paper's."""

    inner: Annotated[int, Field(ge=1, le=8192)] = Field(default=384, description="inner width L, a multiple of heads")
    heads: Annotated[int, Field(ge=1, le=256)] = Field(default=4, description="attention heads")
    local_blocks: Annotated[int, Field(ge=0, le=64)] = Field(
        default=2, description="transformer blocks with local attention, before the global one"
    )
    radius: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=10, description="how far local attention reaches, in patches"
    )
    far: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=100, description="distances beyond this many patches count as this in the global block"
    )
    global_form: Literal["exact", "windows"] = Field(
        default="exact",
        description="'exact' attends to every patch; 'windows' to means over windows, in linear time (ours)",
    )
    max_windows: Annotated[int, Field(ge=1, le=65536)] = Field(default=512, description="most windows of a slide")
    attention_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.05, description="dropout of attention probabilities, in training"
    )


class LongMil(BagModel):
    """LongMIL; see the module's docstring for the formulas.

    ``attention_KN`` has a row a head: how much of each patch's value in the global block enters the slide vector, which
    is the mean over the patches of the attention that it receives. It is measured in evaluation; in training, where
    nobody looks, every patch stands at 1 / N and the time is saved.

    Args:
        width: feature width D.
        n_classes: C.
        options: see ``LongMilOptions``.

    Raises:
        ConfigError: the heads do not divide the inner width.
    """

    slopes_H: Tensor

    def __init__(self, width: int, n_classes: int, options: LongMilOptions) -> None:
        super().__init__()
        inner, heads = options.inner, options.heads
        if inner % heads:
            raise ConfigError(
                f"model.options.inner = {inner}: not a multiple of heads = {heads}",
                remedy=f"take inner = {math.ceil(inner / heads) * heads}, or other heads",
            )
        self.options = options
        self.slide_width = inner
        self.input_norm = input_norm(options.input_norm, width)
        self.embed = nn.Linear(width, options.inner)
        self.blocks = nn.ModuleList(_Block(options) for _ in range(options.local_blocks + 1))
        self.norm = nn.LayerNorm(options.inner)
        self.head = nn.Linear(options.inner, n_classes)
        self.register_buffer("slopes_H", alibi_slopes(options.heads), persistent=False)

    def forward(self, bag: Bag) -> BagOutput:
        """Classify one bag; in training mode with attention dropout from torch's global generator."""
        x_ND = self.input_norm(bag.features_ND.to(self.embed.weight.device))
        x_NL = torch.relu(times(x_ND, self.embed.weight, self.embed.bias))
        # Under autocast, too, what the blocks add up stays in the weights' type.
        x_NL = x_NL.to(self.embed.weight.dtype)
        cells_N2 = grid_cells(bag.coords_N2, bag.patch_size_level0)
        layout = WindowLayout(cells_N2, self.options.radius)
        dropout = self.options.attention_dropout if self.training else 0.0
        *local_blocks, global_block = self.blocks
        for block in local_blocks:
            x_NL = block(x_NL, partial(local_attention, layout=layout, slopes_H=self.slopes_H, dropout=dropout))
        attend = _Everywhere(self.options, cells_N2, self.slopes_H, dropout=dropout, is_measured=not self.training)
        x_NL = global_block(x_NL, attend)
        slide_L = self.norm(x_NL.mean(dim=0))
        return BagOutput(
            logits_C=self.head(slide_L), attention_KN=attend.received_HN.to(slide_L), slide_vector_L=slide_L
        )


class _Block(nn.Module):
    """A pre-LayerNorm transformer block; who attends to whom is the caller's."""

    def __init__(self, options: LongMilOptions) -> None:
        super().__init__()
        width = options.inner
        self.heads = options.heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_NL: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """Return the patches' new vectors (N, L); ``attend`` takes q, k and v (H, N, d) and returns (H, N, d)."""
        qkv_N3Hd = self.qkv(self.attention_norm(x_NL)).unflatten(1, (3, self.heads, -1))
        out_HNd = attend(*qkv_N3Hd.permute(1, 2, 0, 3).contiguous())
        x_NL = x_NL + self.proj(out_HNd.transpose(0, 1).flatten(1))
        changed_NL: Tensor = x_NL + self.mlp(self.mlp_norm(x_NL))
        return changed_NL


class _Everywhere:
    """The global block's attention in the form that the options choose; keeps what each patch received, if asked."""

    def __init__(
        self, options: LongMilOptions, cells_N2: Tensor, slopes_H: Tensor, *, dropout: float, is_measured: bool
    ) -> None:
        self._cells_N2 = cells_N2
        self._windows = Windows(cells_N2, options.max_windows) if options.global_form == "windows" else None
        self._attend = partial(global_attention, slopes_H=slopes_H, far=options.far, dropout=dropout)
        self._is_measured = is_measured
        n = len(cells_N2)
        self.received_HN = torch.full((options.heads, n), 1 / n)

    def __call__(self, q_HNd: Tensor, k_HNd: Tensor, v_HNd: Tensor) -> Tensor:
        """Return (H, N, d)."""
        key_cells, log_counts_M, windows = self._cells_N2, None, self._windows
        if windows is not None:
            k_HNd, v_HNd = (windows.mean(tensor_HNd) for tensor_HNd in (k_HNd, v_HNd))
            key_cells, log_counts_M = windows.centres_M2, windows.log_counts_M
        # Sums over thousands of patches: in float32 at least.
        exact = torch.promote_types(k_HNd.dtype, torch.float32)
        received_HM = k_HNd.new_zeros(k_HNd.shape[:2], dtype=exact) if self._is_measured else None
        out_HNd = self._attend(
            q_HNd,
            k_HNd,
            v_HNd,
            query_cells_N2=self._cells_N2,
            key_cells_M2=key_cells,
            log_counts_M=log_counts_M,
            received_HM=received_HM,
        )
        if received_HM is not None:
            received_HM /= len(self._cells_N2)
            self.received_HN = received_HM if windows is None else windows.spread(received_HM)
        return out_HNd
