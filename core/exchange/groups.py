"""A model's parameters as named arrays by group, and back.

The name of an array is "group/parameter". Groups are what a site trains or does not train as a whole (image, clinical,
norm, …); each is averaged over the sites that trained it.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from fedpath.core.errors import ConfigError, RefusedError
from fedpath.core.exchange.wire import Arrays
from fedpath.core.models.protocol import BagModel

CONTROL = "control:"
"""Before "group/parameter": an array of SCAFFOLD's control variate (to a site), or the change of a site's (from it)."""


def to_arrays(model: BagModel, groups: Iterable[str] | None = None) -> Arrays:
    """Return copies of the model's state as float32 arrays named "group/parameter".

    By default all groups that travel: all but ``resident_groups``.
    """
    by_group = _travelling(model)
    state = model.state_dict()
    return {
        f"{group}/{name}": state[name].to("cpu", torch.float32).numpy().copy()
        for group in (by_group if groups is None else groups)
        for name in by_group[group]
    }


def load_arrays(model: BagModel, arrays: Arrays) -> None:
    """Copy ``arrays`` into the model in place, all or none.

    Raises:
        RefusedError: the names or shapes are not those of this model.
    """
    state = {f"{group}/{name}": name for group, names in _travelling(model).items() for name in names}
    if state.keys() != arrays.keys():
        odd = sorted(state.keys() ^ arrays.keys())
        raise RefusedError(
            f"the model that came has other parameters than this one: {', '.join(odd[:3])}",
            remedy="run the same version of fedpath, with the same [model], on both sides",
        )
    parameters = model.state_dict()
    for key, array in arrays.items():
        shape = tuple(parameters[state[key]].shape)
        if shape != array.shape:
            raise RefusedError(
                f"parameter {key} came with shape {array.shape}, here it is {shape}",
                remedy="compare [features] width and [model] options of both sides",
            )
    with torch.no_grad():
        for key, array in arrays.items():
            parameters[state[key]].copy_(torch.from_numpy(np.asarray(array, order="C")))


_NORMS = (
    nn.modules.batchnorm._NormBase,  # batch and instance norms
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
    nn.RMSNorm,
)
NORM = "norm"
"""In `local.personal`: the parameters and buffers of all normalisation layers (FedBN, Li et al., ICLR 2021)."""


def personal_names(model: BagModel, personal: Iterable[str]) -> frozenset[str]:
    """Return the arrays ("group/parameter") that each site keeps for itself.

    Args:
        model: of the federation.
        personal: parameter groups, and `NORM`; a group that is called so itself comes first.

    Raises:
        ConfigError: the model has no such group, or nothing that travels is left.
    """
    groups = {group: names for group, names in _travelling(model).items() if group not in model.agreed_groups}
    # By the tensors themselves: a model's state may have other names than its modules.
    of_norms = {
        id(tensor)
        for module in model.modules()
        if isinstance(module, _NORMS)
        for tensor in module.state_dict(keep_vars=True).values()
    }
    norms = {name for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) in of_norms}
    kept: set[str] = set()
    for word in personal:
        if word in groups:
            kept |= {f"{word}/{name}" for name in groups[word]}
        elif word == NORM:
            kept |= {f"{group}/{name}" for group, names in groups.items() for name in names if name in norms}
        elif word in model.agreed_groups:
            raise ConfigError(
                f"local.personal: group '{word}' holds what the sites agree on, and is the same at each",
                remedy=f"name some of: {', '.join([*sorted(groups), NORM])}",
            )
        else:
            raise ConfigError(
                f"local.personal: the model has no parameter group '{word}'",
                remedy=f"name some of: {', '.join([*sorted(groups), NORM])}",
            )
    if len(kept) == sum(map(len, groups.values())):
        raise ConfigError("local.personal: nothing is left for the federation to train", remedy="take a group out")
    return frozenset(kept)


def _travelling(model: BagModel) -> dict[str, list[str]]:
    groups = model.parameter_groups()
    return {group: names for group, names in groups.items() if group not in model.resident_groups}


def group_of(name: str) -> str:
    """Return the group part of an array's name."""
    return name.partition("/")[0]
