"""Encoders of a user's own package, named by entry point.

A package registers a class (or any callable that returns a module) in its pyproject.toml:

    [project.entry-points."fedpath.encoders"]
    my-encoder = "mypackage.encoders:MyEncoder"

``MyEncoder()`` is then built for ``--encoder my-encoder``: a ``torch.nn.Module`` that takes colours in 0…1, float32,
(B, 3, H, W), and gives features (B, D). It may be a ``PatchEncoder``, which can be fine-tuned stage by stage; any other
module is one stage. What it says of itself are attributes, all optional: ``patch_px`` (the only edge of a patch that it
takes), ``transform``, ``licence``, ``source``, ``summary``, ``mpp``, and ``needs_weights`` (default: no). With
``--weights`` a state dict under its own names is loaded. Finding one reads the installed packages' metadata only:
nothing of a package is imported before its encoder is asked for by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import torch
from torch import Tensor, nn

from fedpath.core.encoders.base import Hidden, PatchEncoder
from fedpath.core.encoders.row import EncoderInfo, Row
from fedpath.core.errors import ConfigError
from fedpath.core.models.randomness import DRAWS

GROUP = "fedpath.encoders"
"""Group of the entry points."""
_TRIED_PX = 128
"""Edge of the patches on which an encoder is tried that takes any."""
_TEXTS = ("transform", "licence", "source", "summary")


@dataclass(frozen=True, slots=True)
class OwnEncoder:
    """An encoder that an installed package names, as its metadata says it."""

    name: str
    package: str
    version: str
    target: str
    """``module:class`` in the package."""

    @property
    def origin(self) -> str:
        """Package and version in one: ``my-package 1.2``."""
        return f"{self.package} {self.version}"

    def fault(self, what: str, remedy: str = "correct the package; `fedpath --debug …` shows where") -> ConfigError:
        """Return an error that names the encoder, its entry point and its package."""
        return ConfigError(f"own encoder '{self.name}' ({self.target} of package {self.origin}): {what}", remedy=remedy)


class WholeModule(PatchEncoder):
    """Any module as an encoder of one stage, its names in a state dict unchanged."""

    stage_names = ("whole",)

    def __init__(self, module: nn.Module, width: int) -> None:
        """Take over ``module``, whose features have ``width``."""
        super().__init__()
        self.width = width
        self.module = module

    def prepare(self, rgb_BCHW: Tensor) -> Tensor:
        """Return the colours as they are: the module knows what it expects."""
        return rgb_BCHW

    def run_stage(self, index: int, hidden: Hidden) -> Hidden:
        """Run the module."""
        return (self.module(hidden[0]),)

    def stage_modules(self, index: int) -> list[nn.Module | nn.Parameter]:
        """Return the module."""
        return [self.module]


def own_encoders() -> list[OwnEncoder]:
    """Return the encoders that installed packages name, by name and package, without importing any of them."""
    found = [
        OwnEncoder(entry.name, entry.dist.name, entry.dist.version, entry.value)
        for entry in entry_points(group=GROUP)
        if entry.dist is not None
    ]
    return sorted(found, key=lambda own: (own.name, own.package))


def find_own(name: str) -> OwnEncoder | None:
    """Return the encoder that an installed package names so; None when there is none.

    Raises:
        ConfigError: two packages name it.
    """
    found = [own for own in own_encoders() if own.name == name]
    if len(found) > 1:
        raise ConfigError(
            f"encoder '{name}' is named by two packages: {' and '.join(own.origin for own in found)}",
            remedy="uninstall one of them, or rename its entry point",
        )
    return found[0] if found else None


def own_row(own: OwnEncoder) -> Row:
    """Import, build and try an own encoder; return its row, whose ``make`` builds it anew.

    Raises:
        ConfigError: the package cannot be imported, or its module is no encoder; names entry point, package and remedy.
    """
    encoder, module = _built(own)
    patch_px, mpp = getattr(module, "patch_px", None), getattr(module, "mpp", None)
    texts = {key: str(getattr(module, key, "") or f"as {own.origin} has it") for key in _TEXTS}
    needs_weights = bool(getattr(module, "needs_weights", False))
    info = EncoderInfo(
        name=own.name,
        width=encoder.width,
        patch_px=None if patch_px is None else int(patch_px),
        needs_weights=needs_weights,
        transformer=False,
        trainable_stages=1,
        architecture=f"own: {own.target}",
        mpp=None if mpp is None else float(mpp),
        transform=texts["transform"],
        licence=texts["licence"],
        source=texts["source"],
        summary=texts["summary"],
    )

    def make() -> PatchEncoder:
        return _built(own)[0]

    def draw() -> Mapping[str, Tensor]:
        # Outside the meta device, in which a registry's structures are made.
        with torch.device("cpu"):
            return _built(own)[0].state_dict()

    def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        prefix = "module." if isinstance(encoder, WholeModule) else ""
        return {prefix + name: tensor for name, tensor in tensors.items()}

    return Row(info, make, None if needs_weights else draw, (), renamed)


def _built(own: OwnEncoder) -> tuple[PatchEncoder, nn.Module]:
    """Return the encoder and the package's own module, tried unless it is built without numbers."""
    try:
        target: object = EntryPoint(own.name, own.target, GROUP).load()
    except Exception as error:
        raise own.fault(f"cannot be imported: {_in_words(error)}") from error
    if not callable(target):
        raise own.fault("is no class", "let the entry point name a subclass of torch.nn.Module")
    # What it draws must be the same wherever it is built: its weights are its identity.
    with DRAWS, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            module: object = target()
        except Exception as error:
            raise own.fault(f"cannot be built: {_in_words(error)}", "let it need no arguments") from error
    if not isinstance(module, nn.Module):
        raise own.fault(
            f"gives a {type(module).__name__}, no torch.nn.Module", "let the entry point name a subclass of nn.Module"
        )
    module.eval().requires_grad_(False)
    _leave_out_counters(module)
    odd = [name for name, tensor in module.state_dict().items() if tensor.dtype != torch.float32]
    if odd:
        raise own.fault(
            f"'{odd[0]}' of its state is not float32", "make it so, or register_buffer(…, persistent=False)"
        )
    width = _width(own, module)
    return (module if isinstance(module, PatchEncoder) else WholeModule(module, width)), module


def _width(own: OwnEncoder, module: nn.Module) -> int:
    """Run two patches, if the module has numbers and place for them, and return the features' length."""
    edge = int(getattr(module, "patch_px", None) or _TRIED_PX)
    state = list(module.state_dict().values())
    device = state[0].device if state else torch.device("cpu")
    where = f"on 2 patches of {edge} px"
    try:
        with torch.inference_mode():
            features: object = module(torch.full((2, 3, edge, edge), 0.5, device=device))
    except Exception as error:
        raise own.fault(f"fails {where}: {_in_words(error)}", "it takes (B, 3, H, W) colours in 0…1") from error
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 2:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise own.fault(f"gives {shape} {where}; (2, D) is due", "let it return one vector a patch")
    return features.shape[1]


def _leave_out_counters(module: nn.Module) -> None:
    """Drop BatchNorm's ``num_batches_tracked``, which evaluation does not read and which is no float."""
    for part in module.modules():
        if isinstance(getattr(part, "num_batches_tracked", None), Tensor):
            part.register_state_dict_post_hook(_without_counter)  # type: ignore[no-untyped-call]
            part.register_load_state_dict_pre_hook(_with_counter)  # type: ignore[no-untyped-call]


def _without_counter(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
    state.pop(f"{prefix}num_batches_tracked", None)


def _with_counter(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    # A number of its own: what is built on the meta device has none to keep.
    state.setdefault(f"{prefix}num_batches_tracked", torch.tensor(0))


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
