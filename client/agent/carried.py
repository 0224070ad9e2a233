"""What a hospital has of a stage's model beside what comes with an order: personal layers, SCAFFOLD's c_i, residuals.

An order brings what travels of the model, and with SCAFFOLD the federation's control variate c, named `CONTROL` +
"group/parameter". From `SiteMemory` come, as they were after this hospital's last update that counted, its personal
layers (FedBN and other groups of `local.personal`) and its own control variate c_i. Both together make the model that
is validated, trained and kept; after training, what is to be carried on is gathered here.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpath.client.agent.memory import SiteMemory
from fedpath.core.config.federated import LocalSection
from fedpath.core.errors import RefusedError
from fedpath.core.exchange.encoding import RESIDUAL
from fedpath.core.exchange.groups import CONTROL, group_of, load_arrays, personal_names, to_arrays
from fedpath.core.exchange.messages import Evaluate, Finish, Train
from fedpath.core.exchange.wire import Arrays, hash_arrays
from fedpath.core.models.protocol import BagModel
from fedpath.core.training.drift import DriftTerms

PERSONAL = "personal:"
"""Before "group/parameter": a personal layer in `SiteMemory`. c_i is there under the names that c has on the wire."""


@dataclass(frozen=True, slots=True)
class Came:
    """What an order brought, and what this hospital adds to it."""

    local: LocalSection
    model: Arrays
    """What travels of the model."""
    control: Arrays = field(default_factory=dict)
    """SCAFFOLD's c, named "group/parameter"."""
    personal: Arrays = field(default_factory=dict)
    """Personal layers, likewise; empty before the first update that counted."""
    own_control: Arrays = field(default_factory=dict)
    """c_i, likewise; 0 where it is absent."""
    residual: Arrays = field(default_factory=dict)
    """What encodings have left out of earlier updates, as `fedpath.core.exchange.encoding` names it."""
    carries: bool = False
    """Whether anything is carried from round to round."""
    lost: bool = False
    """An update counted, and what was kept with it is not here any more."""

    def fill(self, model: BagModel) -> None:
        """Put the arrays into a model as it is built from the federation's seed.

        Raises:
            RefusedError: what came is not the part of this model that travels.
        """
        names = personal_names(model, self.local.personal)
        if odd := sorted(names & self.model.keys()):
            raise RefusedError(
                f"the model that came holds {odd[0]}, which local.personal says stays at each site",
                remedy="run the same version of fedpath on both sides",
            )
        own = {}
        if names:
            own = {name: array for name, array in to_arrays(model).items() if name in names}
        load_arrays(model, own | {name: array for name, array in self.personal.items() if name in names} | self.model)

    def terms(self, model: BagModel) -> DriftTerms | None:
        """Return what the method adds to the gradients of ``model``; None for plain training."""
        personal = frozenset(_own_name(name) for name in personal_names(model, self.local.personal))
        match self.local.method:
            case "fedprox":
                return DriftTerms(proximal=self.local.proximal, personal=personal)
            case "scaffold":
                correction = {
                    _own_name(name): torch.from_numpy(_minus(c, self.own_control.get(name)))
                    for name, c in self.control.items()
                }
                return DriftTerms(correction=correction, personal=personal)
            case _:
                return None


@dataclass(frozen=True, slots=True)
class Left:
    """What training left: what may go, and what is carried on."""

    trained: Arrays
    """The part that travels of the groups that were trained."""
    personal: Arrays
    control: Arrays
    """c_i⁺, of the parameters that some step reached."""

    def leaving(self, groups: Collection[str], came: Came) -> Arrays:
        """Return the arrays that leave, of the groups that may: weights, and the changes of c_i under `CONTROL`."""
        going = {name: array for name, array in self.trained.items() if group_of(name) in groups}
        for name, array in self._control_of(groups).items():
            going[CONTROL + name] = _minus(array, came.own_control.get(name))
        return going

    def kept(self, groups: Collection[str], came: Came) -> Arrays:
        """Return what is to be kept with the round; c_i moves only where the coordinator's c moves with it."""
        control = came.own_control | self._control_of(groups)
        return {PERSONAL + name: array for name, array in self.personal.items()} | {
            CONTROL + name: array for name, array in control.items()
        }

    def _control_of(self, groups: Collection[str]) -> Arrays:
        return {name: array for name, array in self.control.items() if group_of(name) in groups}


def came_with(order: Train | Evaluate | Finish, arrays: Arrays, memory: SiteMemory) -> Came:
    """Take an order's arrays apart, and put beside them what was kept here.

    Args:
        order: that the arrays came with.
        arrays: the model's, and SCAFFOLD's.
        memory: of the order's stage.

    Raises:
        RefusedError: they do not have the hashes that the order states, or are not those that its method needs.
    """
    local = order.facts.local
    model = {name: array for name, array in arrays.items() if not name.startswith(CONTROL)}
    control = {name: array for name, array in arrays.items() if name.startswith(CONTROL)}
    _check_hash("model", model, order.base)
    if isinstance(order, Train) and local.method == "scaffold":
        if {name.removeprefix(CONTROL) for name in control} != model.keys():
            raise _odd("SCAFFOLD's control variate does not have the parameters of the model that came")
        _check_hash("control variate", control, order.control)
    elif control:
        raise _odd("a control variate came, and nothing here is trained with SCAFFOLD")
    encodes = isinstance(order, Train) and order.exchange.encoding != "float32"
    carries = bool(local.personal or control or encodes)
    kept = memory.load(order.counted) if carries else {}
    return Came(
        local,
        model,
        {name.removeprefix(CONTROL): array for name, array in control.items()},
        _named(kept, PERSONAL),
        _named(kept, CONTROL),
        {name: array for name, array in kept.items() if name.startswith(RESIDUAL)},
        carries=carries,
        lost=carries and order.counted > 0 and not memory.has(order.counted),
    )


def left_by(
    model: BagModel, groups: Collection[str], mean_gradients: Mapping[str, Tensor] | None, local: LocalSection
) -> Left:
    """Gather what training left in a model.

    Args:
        model: after it.
        groups: that were trained.
        mean_gradients: c_i⁺ of SCAFFOLD, by the parameters' own names; None without it.
        local: how it was trained.
    """
    names = personal_names(model, local.personal)
    whole = to_arrays(model) if names else to_arrays(model, groups)
    trained = {name: array for name, array in whole.items() if group_of(name) in groups and name not in names}
    means = mean_gradients or {}
    control = {name: means[own].numpy() for name in trained if (own := _own_name(name)) in means}
    return Left(trained, {name: array for name, array in whole.items() if name in names}, control)


def _minus(one: NDArray[Any], other: NDArray[Any] | None) -> NDArray[Any]:
    # The difference of two arrays of no dimension would be a number.
    return one if other is None else np.asarray(one - other)


def _check_hash(what: str, arrays: Arrays, stated: str | None) -> None:
    if hash_arrays(arrays) != stated:
        raise RefusedError(
            f"the {what} that came does not have the hash the order states",
            remedy="the coordinator's log tells more; start it again",
        )


def _odd(what: str) -> RefusedError:
    return RefusedError(what, remedy="run the same version of fedpath on both sides")


def _named(kept: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in kept.items() if name.startswith(prefix)}


def _own_name(name: str) -> str:
    return name.partition("/")[2]
