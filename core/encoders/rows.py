"""The encoders: one row each. A new one is a row here and, if its architecture is new, a module."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from fedpath.core.encoders import seeded_conv
from fedpath.core.encoders.base import PatchEncoder
from fedpath.core.encoders.colours import IMAGENET
from fedpath.core.encoders.drawn import drawn_state
from fedpath.core.encoders.foundation import FOUNDATION, VIT_UNUSED
from fedpath.core.encoders.resnet import ResNet
from fedpath.core.encoders.row import EncoderInfo, Row
from fedpath.core.encoders.vit import VisionTransformer

_TIMM_FILES = "timm's state dict of this architecture, class token pooling, 224 px, without register tokens"
_FOR_TESTS = "drawn from a seed, for tests and demos only: it has never seen tissue"
_RESNET_UNUSED = ("fc.",)
_TINY_RESNET = partial(ResNet, (1, 1, 1, 1), channels=4)
_TINY_VIT = partial(VisionTransformer, width=48, depth=3, heads=3, patch_px=128)


def _drawn(make: Callable[..., PatchEncoder]) -> Mapping[str, Tensor]:
    with torch.device("meta"):
        blank = make()
    return drawn_state(blank.state_dict(), seed=1)


_ALL = (
    Row(
        EncoderInfo(
            name="seeded-conv",
            width=seeded_conv.WIDTH,
            patch_px=None,
            transform="rgb/127.5-1",
            licence="Apache-2.0",
            source=f"drawn from torch.Generator seed {seeded_conv.SEED}",
            summary="random convolutions, for demos and tests only: it has never seen tissue",
            needs_weights=False,
            transformer=False,
            trainable_stages=2,
            architecture="3 convolutions",
        ),
        seeded_conv.SeededConv,
        seeded_conv.drawn_weights,
    ),
    Row(
        EncoderInfo(
            name="resnet50",
            width=1024,
            patch_px=None,
            transform=IMAGENET.transform,
            licence="that of the file (torchvision's: BSD-3-Clause, trained on ImageNet)",
            source="torchvision's state dict of resnet50: https://download.pytorch.org/models/resnet50-0676ba61.pth",
            summary="residual network of 50 layers, mean of its third stage, as in CLAM",
            needs_weights=True,
            transformer=False,
            trainable_stages=2,
            architecture="ResNet-50 to layer3",
            aliases=("resnet50-layer3",),
        ),
        partial(ResNet, (3, 4, 6)),
        None,
        (*_RESNET_UNUSED, "layer4."),
    ),
    Row(
        EncoderInfo(
            name="resnet50-layer4",
            width=2048,
            patch_px=None,
            transform=IMAGENET.transform,
            licence="that of the file (torchvision's: BSD-3-Clause, trained on ImageNet)",
            source="torchvision's state dict of resnet50: https://download.pytorch.org/models/resnet50-11ad3fa6.pth",
            summary="residual network of 50 layers, mean of its last stage",
            needs_weights=True,
            transformer=False,
            trainable_stages=2,
            architecture="ResNet-50",
        ),
        partial(ResNet, (3, 4, 6, 3)),
        None,
        _RESNET_UNUSED,
    ),
    Row(
        EncoderInfo(
            name="vit-small-16",
            width=384,
            patch_px=224,
            transform=IMAGENET.transform,
            licence="that of the file; encoders trained on pathology are often for research only",
            source=_TIMM_FILES,
            summary="vision transformer, 12 blocks, squares of 16 px, class token",
            needs_weights=True,
            transformer=True,
            trainable_stages=5,
            architecture="ViT-S/16",
        ),
        partial(VisionTransformer, width=384, depth=12, heads=6, patch_px=224),
        None,
        VIT_UNUSED,
        optional_scale=True,
    ),
    Row(
        EncoderInfo(
            name="vit-large-16",
            width=1024,
            patch_px=224,
            transform=IMAGENET.transform,
            licence="that of the file; encoders trained on pathology are often for research only",
            source=_TIMM_FILES,
            summary="vision transformer, 24 blocks, squares of 16 px, class token",
            needs_weights=True,
            transformer=True,
            trainable_stages=5,
            architecture="ViT-L/16",
        ),
        partial(VisionTransformer, width=1024, depth=24, heads=16, patch_px=224),
        None,
        VIT_UNUSED,
        optional_scale=True,
    ),
    *FOUNDATION,
    Row(
        EncoderInfo(
            name="tiny-resnet",
            width=128,
            patch_px=None,
            transform=IMAGENET.transform,
            licence="Apache-2.0",
            source="drawn from torch.Generator seed 1",
            summary=f"a residual network of 4 bottlenecks, {_FOR_TESTS}",
            needs_weights=False,
            transformer=False,
            trainable_stages=2,
            architecture="ResNet of 4 bottlenecks",
        ),
        _TINY_RESNET,
        partial(_drawn, _TINY_RESNET),
        _RESNET_UNUSED,
    ),
    Row(
        EncoderInfo(
            name="tiny-vit",
            width=48,
            patch_px=128,
            transform=IMAGENET.transform,
            licence="Apache-2.0",
            source="drawn from torch.Generator seed 1",
            summary=f"a vision transformer of 3 blocks, {_FOR_TESTS}",
            needs_weights=False,
            transformer=True,
            trainable_stages=3,
            architecture="ViT of 3 blocks",
        ),
        _TINY_VIT,
        partial(_drawn, _TINY_VIT),
        VIT_UNUSED,
        optional_scale=True,
    ),
)
ROWS: Mapping[str, Row] = MappingProxyType({row.info.name: row for row in _ALL})
ALIASES: Mapping[str, str] = MappingProxyType({alias: row.info.name for row in _ALL for alias in row.info.aliases})
"""Other names, and the name that each means."""
