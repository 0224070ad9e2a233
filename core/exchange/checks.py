"""What an answer must satisfy before it counts. A bad one is refused by name and the round goes on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from fedpath.core.config.federated import ExchangeSection
from fedpath.core.config.federation import FeaturesSection
from fedpath.core.errors import RefusedError
from fedpath.core.exchange.contract import differences
from fedpath.core.exchange.encoding import sends_changes
from fedpath.core.exchange.groups import CONTROL, group_of
from fedpath.core.exchange.messages import Encoded, Update
from fedpath.core.exchange.wire import printable


@dataclass(frozen=True, slots=True)
class Entitled:
    """What a site's update may hold, by the model and by what the site described before it was accepted."""

    patients: int
    """Training patients."""
    with_clinical: int = 0
    """Of them, those with clinical data that the federation has agreed on; 0 where it has agreed on none."""
    clinical_groups: frozenset[str] = frozenset()
    agreed_groups: frozenset[str] = frozenset()
    """See ``BagModel``."""

    def fault_of(self, group: str, patients: int) -> str | None:
        """Say what is wrong with a group that ``patients`` patients are said to have trained; None if nothing is."""
        if group in self.agreed_groups:
            return f"it sends group {group}, which holds what the hospitals agreed on and nobody trains"
        if patients < 1:
            return f"group {group} was trained on {patients} patients"
        clinical = group in self.clinical_groups
        if clinical and self.with_clinical == 0:
            return f"it sends group {group}, which only patients with clinical data train, and described none"
        if patients > (described := self.with_clinical if clinical else self.patients):
            what = "patients with clinical data" if clinical else "patients"
            return f"group {group} was trained on {patients} {what}, it described {described}"
        return None


class Stated(Protocol):
    """What the file of an update says it holds: see `fedpath.core.exchange.stored.ArrayFile`."""

    @property
    def names(self) -> set[str]:
        """The arrays' names."""
        ...

    @property
    def changes(self) -> bool:
        """Whether they are changes against the model that the site was given."""
        ...

    def dtype(self, name: str) -> str:
        """Return an array's type as safetensors names it."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Return an array's shape."""
        ...


@dataclass(frozen=True, slots=True)
class Expected:
    """What the updates of a round must be like."""

    round: int
    base: str
    """Hash of the model that the round started from."""
    model: Mapping[str, tuple[int, ...]]
    """Names and shapes of that model's arrays, but for those that each site keeps for itself."""
    exchange: ExchangeSection
    control: bool = False
    """Whether changes of SCAFFOLD's control variates come along."""


CAUSES = ("form", "counts", "not_finite", "norm", "untrained", "stale", "unreadable", "other")
"""Why an update does not count, in one word: it is not of the form that was asked for; counts patients that it cannot
have; holds NaN or infinity; changes the model too much, or not at all; is of too old a round; is no file of arrays."""
_STORED_AS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8"}


def check_form(site: str, header: Update, stated: Stated, *, expected: Expected, entitled: Entitled) -> None:
    """Check all of an update but its numbers.

    Args:
        site: who sent it, for the message.
        header: the update's header.
        stated: names, types and shapes of its arrays.
        expected: of the round.
        entitled: the groups that this site can have trained, and on how many patients at most.

    Raises:
        RefusedError: naming the site, the round and the first thing that is wrong.
    """
    refuse = partial(refused, site, expected.round)
    if header.round != expected.round:
        raise refuse(f"it is of round {header.round}")
    if header.base != expected.base:
        raise refuse(f"it started from model {header.base[:12]}…, not {expected.base[:12]}…")
    sent = {name for name in stated.names if not name.startswith(CONTROL)}
    groups = {group_of(name) for name in sent}
    whole = {name for name in expected.model if group_of(name) in groups}
    controls = stated.names - sent
    unknown = {name for name in controls if not expected.control or name.removeprefix(CONTROL) not in whole}
    if odd := sorted((sent ^ whole) | unknown):
        named = ", ".join(printable(name[:100]) for name in odd[:3])
        raise refuse(f"parameters missing or unknown: {named}")
    if not groups or groups != header.patients.keys():
        raise refuse(f"it counts patients for {sorted(header.patients)} but sends {sorted(groups)}")
    for group, patients in header.patients.items():
        if fault := entitled.fault_of(group, patients):
            raise refuse(fault, "counts")
    if stated.changes != sends_changes(expected.exchange):
        raise refuse("it holds changes, not weights" if stated.changes else "it holds weights, not changes")
    for name in sorted(stated.names):
        wanted = expected.model[name.removeprefix(CONTROL)]
        # Small arrays may travel as they are, whatever the encoding.
        types = ("F32", _STORED_AS[expected.exchange.encoding])
        if stated.dtype(name) not in types or stated.shape(name) != wanted:
            raise refuse(f"{name} is {stated.dtype(name)}{stated.shape(name)}, should be {types[1]}{wanted}")


def check_change(site: str, round_: int, norms: Mapping[str, float], max_norm: float | None) -> None:
    """Check how far an update moved the model.

    Args:
        site: who sent it.
        round_: in which round.
        norms: Euclidean norm of the change, by group.
        max_norm: largest allowed one over all groups; None for no limit.

    Raises:
        RefusedError: naming site and round.
    """
    if unmoved := sorted(group for group, norm in norms.items() if norm == 0):
        raise refused(site, round_, f"group {unmoved[0]} is that of the global model: it was not trained", "untrained")
    norm = math.hypot(*norms.values())
    if max_norm is not None and norm > max_norm:
        raise refused(site, round_, f"its change has norm {norm:.3g}, the limit is {max_norm:.3g}", "norm")


def refused(site: str, round_: int, reason: str, cause: str = "form") -> RefusedError:
    """Return the error that an update which does not count is refused with; ``cause`` is one of `CAUSES`."""
    return RefusedError(
        f"site {site}, round {round_}: update refused: {reason}", remedy="look at the log of that site", cause=cause
    )


def check_encoded(site: str, header: Encoded, expected: FeaturesSection) -> None:
    """Check that a site's new features are those that were ordered.

    Args:
        site: who encoded, for the message.
        header: its answer.
        expected: encoder, hash, width, resolution and patch size that the features are to have.

    Raises:
        RefusedError: naming the site and what is wrong.
    """
    if wrong := differences(expected, header.contract):
        raise RefusedError(
            f"site {site}: its new features are not those that were asked for: {'; '.join(wrong)}",
            remedy="run the same version of fedpath on both sides",
        )
