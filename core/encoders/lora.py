"""Low-rank adapters: an attention layer learns a product of two thin matrices beside its own, which stays as it is.

Hu et al., LoRA, ICLR 2022: y = W x + b + (alpha / rank) · up (down x). ``up`` starts at 0, so that an adapted encoder
begins as the one it was. The product is never added into W: what was trained is what is hashed and exchanged.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpath.core.encoders.base import PatchEncoder
from fedpath.core.encoders.drawn import drawn
from fedpath.core.encoders.swin import WindowAttention
from fedpath.core.encoders.vit import Attention
from fedpath.core.errors import ConfigError

DOWN, UP, SCALE = "lora_down", "lora_up", "lora_scale"
"""Last parts of names in a state dict. The scale is a buffer: it decides the features, so it is hashed with them."""


class AdaptedLinear(nn.Linear):
    """A linear layer with an adapter beside it; its own weights keep their names."""

    lora_scale: Tensor

    def __init__(self, layer: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        """Take over the weights of ``layer``; the adapter is beside them on the same device (meta: without numbers)."""
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        like = layer.weight
        # The spread of He's uniform numbers with a slope of √5, as the paper's code draws them: variance 1/(3·in).
        down = drawn((rank, layer.in_features), math.sqrt(1 / (3 * layer.in_features)), generator)
        self.lora_down = nn.Parameter(down.to(like), requires_grad=False)
        self.lora_up = nn.Parameter(torch.zeros(layer.out_features, rank).to(like), requires_grad=False)
        self.register_buffer(SCALE, torch.tensor(alpha / rank).to(like))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (…, out) of (…, in)."""
        low = functional.linear(hidden, self.lora_down)
        return super().forward(hidden) + functional.linear(low, self.lora_up) * self.lora_scale


def add_adapters(encoder: PatchEncoder, rank: int, alpha: float, seed: int = 0) -> None:
    """Give every attention layer of ``encoder`` (query-key-value and projection) an adapter, in place.

    Features stay what they are, to the bit: the adapters add 0 until they are trained.

    Args:
        encoder: a transformer without adapters.
        rank: of the product.
        alpha: its output is scaled by alpha / rank.
        seed: of the first matrix: the same one gives the same bits.

    Raises:
        ConfigError: the encoder has no attention layers, or has adapters already.
    """
    attentions = [module for module in encoder.modules() if isinstance(module, Attention | WindowAttention)]
    if not attentions:
        raise ConfigError(
            "adapter 'lora' is for the attention layers of transformers, and this encoder has none",
            remedy='set stage.tuning.adapter = "none", or take a transformer (vit-…)',
        )
    if any(isinstance(attention.qkv, AdaptedLinear) for attention in attentions):
        raise ConfigError(
            "this encoder has low-rank adapters already", remedy="start from the encoder that they were added to"
        )
    generator = torch.Generator().manual_seed(seed)
    for attention in attentions:
        attention.qkv = AdaptedLinear(attention.qkv, rank, alpha, generator)
        attention.proj = AdaptedLinear(attention.proj, rank, alpha, generator)


def has_adapters(encoder: PatchEncoder) -> bool:
    """Tell whether the encoder has adapters."""
    return any(isinstance(module, AdaptedLinear) for module in encoder.modules())
