"""Names of published state dicts, brought to those of the encoders here.

Each function takes a file's tensors by plain names (`fedpath.core.encoders.weights.plain_names`, which has taken
``encoder.`` off as well) and returns them under the encoder's names. What it does not know keeps its name: it is
refused later, by the name that stands in the file.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_TRANSFORMERS = (
    (r"^(vit|dinov2)\.(encoder\.)?", ""),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.mask_token$", "mask_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^layer\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
)
"""From the names of Hugging Face's transformers (ViTModel, Dinov2Model) to timm's, in this order."""
_PARTS = ("query", "key", "value")


def from_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a transformer's tensors under timm's names, query, key and value in one. timm's names stay."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, ours in _TRANSFORMERS:
            name = re.sub(pattern, ours, name)
        found[name] = tensor
    for name in [name for name in found if ".attn.query." in name]:
        parts = [name.replace(".query.", f".{part}.") for part in _PARTS]
        if all(part in found for part in parts):
            found[name.replace(".query.", ".qkv.")] = torch.cat([found.pop(part) for part in parts])
    return found


def from_conch(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of CONCH's image tower, with or without ``visual.`` before their names."""
    return {name.removeprefix("visual."): tensor for name, tensor in tensors.items()}


def from_swin(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return CTransPath's tensors without tables that follow from the architecture.

    Newer versions of timm count a layer's merge to the layer above it; the names here are those of the published file.
    """
    found: dict[str, Tensor] = {}
    newer = any(name.startswith("layers.3.downsample.") for name in tensors)
    for name, tensor in tensors.items():
        if name.endswith(("relative_position_index", "attn_mask")):
            continue
        if newer and (match := re.match(r"layers\.(\d)\.downsample\.(.+)", name)):
            name = f"layers.{int(match[1]) - 1}.downsample.{match[2]}"
        found[name] = tensor
    return found
