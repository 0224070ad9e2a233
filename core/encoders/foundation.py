"""Rows of encoders that were trained on pathology.

Structures are those with which the published weights are loaded elsewhere. No file of weights comes with fedpath, none
is downloaded, and none was at hand to try. Licences and µm/px are a guide: a model's page is what holds.
"""

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor

from fedpath.core.encoders.base import PatchEncoder
from fedpath.core.encoders.colours import BIOPTIMUS, HALVES, IMAGENET, LUNIT, Colours
from fedpath.core.encoders.conch import conch_v1, conch_v15
from fedpath.core.encoders.names import from_conch, from_swin, from_transformers
from fedpath.core.encoders.row import EncoderInfo, Row
from fedpath.core.encoders.swin import Swin
from fedpath.core.encoders.vit import VisionTransformer

VIT_UNUSED = ("head.", "mask_token")
"""Classifiers, and what stands for hidden squares in self-supervised training."""
_NC_ND = "CC-BY-NC-ND-4.0: no commercial use, no derivatives"
_CONCH_UNUSED = (
    "text.",
    "text_decoder.",
    "logit_scale",
    "attn_pool_caption.",
    "ln_caption.",
    "proj_contrast",
    "trunk.head.",
)
"""The tower of texts, what writes captions, and the projection beyond the features."""
_vit = partial(VisionTransformer, patch_px=224)
_giant = partial(_vit, width=1536, heads=24, layer_scale=True, gated=4096)
_huge = partial(_vit, width=1280, depth=32, heads=16, square=14, layer_scale=True, gated=3416, pool="class+mean")


def _row(
    name: str,
    make: Callable[..., PatchEncoder],
    *,
    page: str,
    licence: str,
    gated: bool,
    architecture: str,
    width: int,
    summary: str = "the class token",
    file: str = "pytorch_model.bin",
    aliases: tuple[str, ...] = (),
    colours: Colours = IMAGENET,
    patch_px: int = 224,
    mpp: float = 0.5,
    trainable_stages: int = 5,
    unused: tuple[str, ...] = VIT_UNUSED,
    renamed: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = from_transformers,
) -> Row:
    info = EncoderInfo(
        name=name,
        width=width,
        patch_px=patch_px,
        transform=colours.transform,
        licence=licence,
        source=f"{page} ({file})",
        summary=summary,
        needs_weights=True,
        transformer=True,
        trainable_stages=trainable_stages,
        architecture=architecture,
        aliases=aliases,
        mpp=mpp,
        gated=gated,
    )
    return Row(info, make, None, unused, renamed)


_HUB = "https://huggingface.co/"

FOUNDATION = (
    _row(
        "uni_v1",
        partial(_vit, width=1024, depth=24, heads=16, layer_scale=True),
        page=_HUB + "MahmoodLab/UNI",
        licence=_NC_ND,
        gated=True,
        architecture="ViT-L/16",
        width=1024,
        aliases=("uni",),
    ),
    _row(
        "uni_v2",
        partial(_giant, depth=24, square=14, registers=8, positions="squares"),
        page=_HUB + "MahmoodLab/UNI2-h",
        licence=_NC_ND,
        gated=True,
        architecture="ViT-H/14, 8 registers",
        width=1536,
        aliases=("uni2", "uni2-h"),
    ),
    _row(
        "conch_v1",
        conch_v1,
        page=_HUB + "MahmoodLab/CONCH",
        licence=_NC_ND,
        gated=True,
        architecture="ViT-B/16, attention pooling",
        width=512,
        summary="one query over all tokens, before the projection",
        aliases=("conch",),
        patch_px=448,
        trainable_stages=6,
        unused=_CONCH_UNUSED,
        renamed=from_conch,
    ),
    _row(
        "conch_v15",
        conch_v15,
        page=_HUB + "MahmoodLab/conchv1_5",
        file="pytorch_model_vision.bin",
        licence=_NC_ND,
        gated=True,
        architecture="ViT-L/16, attention pooling",
        width=768,
        summary="one query over all tokens",
        aliases=("conchv1_5",),
        patch_px=448,
        trainable_stages=6,
        unused=_CONCH_UNUSED,
        renamed=from_conch,
    ),
    _row(
        "virchow",
        _huge,
        page=_HUB + "paige-ai/Virchow",
        licence="Apache-2.0, with terms to accept",
        gated=True,
        architecture="ViT-H/14",
        width=2560,
        summary="the class token, and the mean of the squares' tokens",
    ),
    _row(
        "virchow2",
        partial(_huge, registers=4),
        page=_HUB + "paige-ai/Virchow2",
        licence=_NC_ND,
        gated=True,
        architecture="ViT-H/14, 4 registers",
        width=2560,
        summary="the class token, and the mean of the squares' tokens",
    ),
    _row(
        "gigapath",
        partial(_giant, depth=40, square=16),
        page=_HUB + "prov-gigapath/prov-gigapath",
        licence="Apache-2.0, with terms to accept: for research",
        gated=True,
        architecture="ViT-g/16",
        width=1536,
        aliases=("prov-gigapath",),
    ),
    _row(
        "hoptimus0",
        partial(_giant, depth=40, square=14, registers=4, positions="squares", colours=BIOPTIMUS),
        page=_HUB + "bioptimus/H-optimus-0",
        licence="Apache-2.0, with terms to accept",
        gated=True,
        architecture="ViT-g/14, 4 registers",
        width=1536,
        aliases=("h-optimus-0",),
        colours=BIOPTIMUS,
    ),
    _row(
        "hoptimus1",
        partial(_giant, depth=40, square=14, registers=4, positions="squares", colours=BIOPTIMUS),
        page=_HUB + "bioptimus/H-optimus-1",
        licence=_NC_ND,
        gated=True,
        architecture="ViT-g/14, 4 registers",
        width=1536,
        aliases=("h-optimus-1",),
        colours=BIOPTIMUS,
    ),
    _row(
        "phikon",
        # The epsilon of its layer norms is that of transformers' ViTModel, not timm's.
        partial(_vit, width=768, depth=12, heads=12, epsilon=1e-12),
        page=_HUB + "owkin/phikon",
        licence="Owkin's non-commercial licence",
        gated=False,
        architecture="ViT-B/16",
        width=768,
        unused=(*VIT_UNUSED, "pooler."),
    ),
    _row(
        "phikon_v2",
        partial(_vit, width=1024, depth=24, heads=16, layer_scale=True),
        page=_HUB + "owkin/phikon-v2",
        file="model.safetensors",
        licence="Owkin's non-commercial licence",
        gated=False,
        architecture="ViT-L/16",
        width=1024,
        aliases=("phikon-v2",),
    ),
    _row(
        "ctranspath",
        partial(Swin, width=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), patch_px=224),
        page="https://github.com/Xiyue-Wang/TransPath",
        file="ctranspath.pth",
        licence="GPL-3.0",
        gated=False,
        architecture="Swin-T, stem of convolutions",
        width=768,
        summary="the mean of the last layer's tokens",
        mpp=1.0,
        trainable_stages=3,
        unused=("head.",),
        renamed=from_swin,
    ),
    _row(
        "lunit-vits8",
        partial(_vit, width=384, depth=12, heads=6, square=8, colours=LUNIT),
        page="https://github.com/lunit-io/benchmark-ssl-pathology",
        file="dino_vit_small_patch8_ep200.torch",
        licence="Lunit's: non-commercial, for research",
        gated=False,
        architecture="ViT-S/8",
        width=384,
        colours=LUNIT,
    ),
    _row(
        "midnight12k",
        partial(_giant, depth=40, square=14, pool="class+mean", colours=HALVES),
        page=_HUB + "kaiko-ai/midnight",
        file="model.safetensors",
        licence="MIT",
        gated=False,
        architecture="ViT-g/14",
        width=3072,
        summary="the class token, and the mean of the squares' tokens",
        aliases=("midnight",),
        colours=HALVES,
    ),
)
"""In the order of the documentation's table."""
