"""What a row of the registry of encoders is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from fedpath.core.encoders.base import PatchEncoder


@dataclass(frozen=True, slots=True)
class EncoderInfo:
    """What a federation must agree on about an encoder, and what a user should know before choosing it."""

    name: str
    width: int
    """Length of a feature vector."""
    patch_px: int | None
    """The only edge of a patch that it takes; None: any of at least 16 px."""
    transform: str
    """From 8-bit RGB to the encoder's input."""
    licence: str
    """Of the weights."""
    source: str
    """Where the weights come from."""
    summary: str
    needs_weights: bool
    """Whether it comes without weights: a file of them must be named."""
    transformer: bool
    """Whether it has attention layers, which adapters need."""
    trainable_stages: int
    """How many of its last stages fine-tuning trains unless it is told otherwise."""
    architecture: str = ""
    aliases: tuple[str, ...] = ()
    """Other names that mean this encoder; files and federations bear the first one."""
    mpp: float | None = None
    """µm/px at which it is commonly used; its authors may have trained on several."""
    gated: bool = False
    """Whether its page gives the weights only to who has accepted its terms there."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the registry."""

    info: EncoderInfo
    make: Callable[..., PatchEncoder]
    """The structure; where ``optional_scale`` is set it takes ``layer_scale``."""
    draw: Callable[[], Mapping[str, Tensor]] | None
    """The state of an encoder that comes with its weights."""
    unused: tuple[str, ...] = ()
    """Prefixes of names in published state dicts that features do not need."""
    renamed: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None
    """From a published file's names to the encoder's own, after what wrapped them is taken off."""
    optional_scale: bool = False
    """Whether files with layer scale and without are both of this encoder."""
