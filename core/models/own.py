"""Models of a user's own package, named by entry point and built like ours.

A package registers a class (or any callable that returns a module) in its pyproject.toml:

    [project.entry-points."fedpath.models"]
    my-mil = "mypackage.models:MyMIL"

``MyMIL(width=D, n_classes=C, **options)`` is then built for ``[model] name = "my-mil"``. Finding a model reads the
installed packages' metadata only: nothing of a package is imported before its model is built by name.
"""

import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedpath.core.bags.bag import Bag
from fedpath.core.errors import ConfigError
from fedpath.core.models.adapter import Adapted, in_words
from fedpath.core.models.protocol import BagModel, BagOutput
from fedpath.core.models.randomness import seeded

GROUP = "fedpath.models"
"""Group of the entry points."""
_TRIED = (7, 1)
"""Patches of the two bags that every model is tried on when it is built."""


@dataclass(frozen=True, slots=True)
class OwnModel:
    """A model that an installed package names, as its metadata says it."""

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
        """Return an error that names the model, its entry point and its package."""
        return ConfigError(f"own model '{self.name}' ({self.target} of package {self.origin}): {what}", remedy=remedy)


def own_models() -> list[OwnModel]:
    """Return the models that installed packages name, by name and package, without importing any of them."""
    return list(_named_in(tuple((folder, _changed(folder)) for folder in sys.path)))


@lru_cache(maxsize=1)
def _named_in(_folders: tuple[tuple[str, int], ...]) -> tuple[OwnModel, ...]:
    """Read the metadata of all packages in the folders that are searched: milliseconds, for every model that is built.

    Args:
        _folders: `sys.path`, with the time at which each was changed; an installation changes it.
    """
    found = [
        OwnModel(entry.name, entry.dist.name, entry.dist.version, entry.value)
        for entry in entry_points(group=GROUP)
        if entry.dist is not None
    ]
    return tuple(sorted(found, key=lambda own: (own.name, own.package)))


def _changed(folder: str) -> int:
    try:
        return Path(folder).stat().st_mtime_ns
    except OSError:  # the path names things that are not there
        return 0


def find_own(name: str) -> OwnModel | None:
    """Return the model that an installed package names so; None when there is none.

    Raises:
        ConfigError: two packages name it.
    """
    found = [own for own in own_models() if own.name == name]
    if len(found) > 1:
        raise ConfigError(
            f"model '{name}' is named by two packages: {' and '.join(own.origin for own in found)}",
            remedy="uninstall one of them, or rename its entry point",
        )
    return found[0] if found else None


def origin_of(name: str) -> str | None:
    """Return package and version of the own model ``name``; None when no installed package names it."""
    own = find_own(name)
    return None if own is None else own.origin


def options_of(own: OwnModel) -> dict[str, Any]:
    """Import an own model and return the defaults of its options; ``inspect.Parameter.empty`` marks those without.

    Raises:
        ConfigError: the package cannot be imported, or the model does not take ``width`` and ``n_classes``.
    """
    target = _import(own)
    signature = _signature(target)
    try:
        signature.bind_partial(width=1, n_classes=2)
    except TypeError as error:
        raise own.fault(
            f"cannot be called with width and n_classes: {error}", "let it take both as keyword arguments"
        ) from error
    return {name: parameter.default for name, parameter in _options(signature).items()}


def build_own(own: OwnModel, *, width: int, n_classes: int, options: Mapping[str, Any], seed: int) -> BagModel:
    """Import and build an own model, and try it on two small bags.

    A ``BagModel`` is used as it is; any other ``nn.Module`` is adapted (`fedpath.core.models.adapter`).

    Args:
        own: of `find_own`.
        width: feature width D.
        n_classes: C.
        options: passed on as keyword arguments.
        seed: of the initialisation, through torch's global generator; it is left as it was.

    Raises:
        ConfigError: the package cannot be imported, does not take these arguments, or its model is not one that can be
            trained and averaged; names the entry point, the package and the remedy.
    """
    # With gradients also where the caller has switched them off, say to load a model: the trial looks for them.
    with torch.inference_mode(False), torch.enable_grad(), seeded(seed):
        module = _construct(own, _import(own), width, n_classes, options)
        model = module if isinstance(module, BagModel) else Adapted(module, n_classes, own.fault)
        _try(own, model, width, n_classes)
    _leave_out_counters(model)
    _check_state(own, model)
    return model.train()


def _import(own: OwnModel) -> Callable[..., object]:
    try:
        target: object = EntryPoint(own.name, own.target, GROUP).load()
    except Exception as error:
        raise own.fault(f"cannot be imported: {in_words(error)}") from error
    if not callable(target):
        raise own.fault("is no class", "let the entry point name a subclass of torch.nn.Module")
    return target


def _construct(
    own: OwnModel, target: Callable[..., object], width: int, n_classes: int, options: Mapping[str, Any]
) -> nn.Module:
    try:
        json.dumps(dict(options), allow_nan=False)
    except (TypeError, ValueError) as error:
        # They travel in orders and stand in checkpoints.
        raise own.fault(f"[model.options] cannot be sent: {error}", "use texts, numbers, lists and tables") from None
    if taken := sorted({"width", "n_classes"} & options.keys()):
        raise own.fault(f"[model.options] sets {taken[0]}", "remove it: it follows from [features] and [task]")
    arguments = {"width": width, "n_classes": n_classes, **options}
    try:
        _signature(target).bind(**arguments)
    except TypeError as error:
        takes = ", ".join(_options(_signature(target))) or "none"
        raise own.fault(
            f"cannot be called with width, n_classes and [model.options]: {error}",
            f"correct [model.options]: the options it takes are {takes}",
        ) from error
    try:
        module = target(**arguments)
    except Exception as error:
        raise own.fault(
            f"cannot be built: {in_words(error)}", "check [model.options]; `fedpath --debug …` shows where it fails"
        ) from error
    if not isinstance(module, nn.Module):
        raise own.fault(
            f"gives a {type(module).__name__}, no torch.nn.Module", "let the entry point name a subclass of nn.Module"
        )
    return module


def _signature(target: Callable[..., object]) -> inspect.Signature:
    """Return how the target is called; what is written in C may not say, and takes anything until it is called."""
    try:
        return inspect.signature(target)
    except ValueError:
        return inspect.Signature([inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)])


def _options(signature: inspect.Signature) -> dict[str, inspect.Parameter]:
    """Return what is taken beside width and n_classes, without ``*args`` and ``**kwargs``."""
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {
        name: parameter
        for name, parameter in signature.parameters.items()
        if name not in ("width", "n_classes") and parameter.kind not in variable
    }


def _try(own: OwnModel, model: BagModel, width: int, n_classes: int) -> None:
    """Run the model on small bags, in eval mode: what is wrong for every bag is found before any training."""
    model.eval()
    for n_patches in _TRIED:
        where = f"on a bag of {n_patches} × {width} features"
        grid_N2 = torch.stack([torch.arange(n_patches) * 256, torch.zeros(n_patches, dtype=torch.int64)], dim=1)
        try:
            output: Any = model(Bag("trial", torch.randn(n_patches, width), grid_N2, 256))
            loss = model.loss(output, 0, None)
        except ConfigError:
            raise
        except Exception as error:
            raise own.fault(
                f"fails {where}: {in_words(error)}", "a bag may hold any number of patches, one too"
            ) from error
        if not (isinstance(output, BagOutput) and output.logits_C.shape == (n_classes,)):
            raise own.fault(f"gives no BagOutput with {n_classes} logits {where}")
        if output.attention_KN.ndim != 2 or output.attention_KN.shape[1] != n_patches:
            raise own.fault(f"gives attention of shape {tuple(output.attention_KN.shape)} {where}; (K, N) is due")
        if not all(bool(part.isfinite().all()) for part in (output.logits_C, output.slide_vector_L, loss)):
            raise own.fault(f"gives NaN or infinite values {where}")
        if not loss.requires_grad:
            raise own.fault(
                "has nothing to train: no gradient reaches its parameters", "register them as nn.Parameter; detach none"
            )


def _leave_out_counters(model: nn.Module) -> None:
    """Keep BatchNorm's ``num_batches_tracked`` out of the state.

    The integer cannot be averaged, and with a momentum nothing reads it. torch fills it in where a state lacks it.
    """
    for module in model.modules():
        counter = getattr(module, "num_batches_tracked", None)
        if isinstance(counter, Tensor) and getattr(module, "momentum", None) is not None:
            module.register_state_dict_post_hook(_without_counter)  # type: ignore[no-untyped-call]
            module.register_load_state_dict_pre_hook(_with_counter)  # type: ignore[no-untyped-call]


def _without_counter(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
    state.pop(f"{prefix}num_batches_tracked", None)


def _with_counter(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    state.setdefault(f"{prefix}num_batches_tracked", module.num_batches_tracked)


def _check_state(own: OwnModel, model: BagModel) -> None:
    """Refuse a state that could not be averaged over hospitals."""
    try:
        state, by_group = model.state_dict(), model.parameter_groups()
    except Exception as error:
        raise own.fault(f"does not tell its state or its parameter groups: {in_words(error)}") from error
    for name, value in state.items():
        remedy = f"make '{name}' float32, or keep it out of the state: register_buffer(…, persistent=False)"
        if name.endswith("num_batches_tracked"):
            remedy = "give that BatchNorm a momentum: a cumulative average cannot be continued at another hospital"
        if not isinstance(value, Tensor):
            raise own.fault(
                f"keeps '{name}' in its state, which is no tensor", "keep it in the constructor's arguments"
            )
        if value.dtype != torch.float32:
            raise own.fault(f"'{name}' is {value.dtype}: only float32 is averaged over hospitals", remedy)
        if not bool(value.isfinite().all()):
            raise own.fault(f"'{name}' holds NaN or infinite values, which no update may", remedy)
    groups = [name for group in by_group.values() for name in group]
    if sorted(groups) != sorted(state):
        odd = sorted(set(groups) ^ set(state)) or sorted({name for name in groups if groups.count(name) > 1})
        raise own.fault(
            f"parameter_groups() and state_dict() differ in: {', '.join(odd[:3])}",
            "let the groups name every entry of the state once",
        )
