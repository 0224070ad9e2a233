"""The mean of the sites' updates, a parameter group at a time, weighted by the patients that trained the group.

McMahan et al., AISTATS 2017 (FedAvg), a group: mean_g = Σ_s n_sg · w_sg / Σ_s n_sg over the sites s that sent it.
Updates are added one by one and can be dropped at once: memory is the sums and one update, for any number of sites.
Float sums depend on the order, so the caller adds the sites in a fixed one.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fedpath.core.config.federated import AggregationSection
from fedpath.core.errors import RefusedError
from fedpath.core.exchange.groups import CONTROL, group_of
from fedpath.core.exchange.stored import ArrayFile
from fedpath.core.exchange.wire import Arrays


class GroupMean:
    """Accumulates updates; a group that no site trained keeps the reference's values."""

    def __init__(self, reference: Arrays) -> None:
        self._reference = reference
        self._sums: Arrays = {}
        self._patients: Counter[str] = Counter()

    def add(self, arrays: Arrays, patients: Mapping[str, int]) -> None:
        """Add one checked update.

        Args:
            arrays: float32, named "group/parameter".
            patients: how many patients trained each group.
        """
        for name, array in arrays.items():
            # asarray, here and below: arithmetic makes numpy scalars of arrays without a dimension.
            weighted = np.asarray(np.multiply(array, np.float32(patients[group_of(name)]), dtype=np.float32))
            if name in self._sums:
                self._sums[name] += weighted
            else:
                self._sums[name] = weighted
        self._patients.update(patients)

    def result(self) -> tuple[Arrays, dict[str, int]]:
        """Return the new global model and the patients counted for each group."""
        mean = dict(self._reference)
        for name, total in self._sums.items():
            mean[name] = np.asarray(total / np.float32(self._patients[group_of(name)]))
        return mean, dict(self._patients)


@dataclass(frozen=True, slots=True)
class Counted:
    """One update that counts."""

    site: str
    arrays: ArrayFile
    patients: Mapping[str, float]
    """Weight of each group."""
    base: Arrays | None = None
    """The model a late update started from; None for the round's own."""


@dataclass(frozen=True, slots=True)
class Combined:
    """What updates became."""

    arrays: Arrays
    patients: dict[str, float]
    chosen: list[str] | None = None


class Combiner(Protocol):
    """Takes updates one by one."""

    def add(self, update: Counted) -> None:
        """Add one checked update."""
        ...

    def result(self) -> Combined:
        """Return what they became."""
        ...


def measure(update: ArrayFile, reference: Arrays) -> dict[str, float]:
    """Return the Euclidean norm of an update's change, by group.

    Raises:
        RefusedError: a number is not finite.
    """
    squares: dict[str, float] = {}
    for name in sorted(name for name in update.names if not name.startswith(CONTROL)):
        change = update.array(name).astype(np.float64)
        if not update.changes:
            change = change - reference[name]
        if not np.isfinite(change).all():
            raise RefusedError(f"{name} holds NaN or infinite values", remedy="look at the log of that site")
        group = group_of(name)
        squares[group] = squares.get(group, 0.0) + float(np.vdot(change, change))
    return {group: square**0.5 for group, square in squares.items()}


def sites_needed(settings: AggregationSection) -> int:
    """Return how many updates the estimator needs."""
    return 1


class _Mean:
    def __init__(self, reference: Arrays) -> None:
        self._reference, self._updates = reference, list[Counted]()

    def add(self, update: Counted) -> None:
        self._updates.append(update)

    def result(self) -> Combined:
        result, patients = dict(self._reference), dict[str, float]()
        for update in self._updates:
            for group, weight in update.patients.items():
                patients[group] = patients.get(group, 0.0) + weight
        for name, reference in self._reference.items():
            total: Any = None
            for update in sorted(self._updates, key=lambda update: update.site):
                if name in update.arrays.names:
                    array = update.arrays.array(name)
                    if update.arrays.changes:
                        array = array + (reference if update.base is None else update.base[name])
                    if update.base is not None:
                        array = reference + (array - update.base[name])
                    weighted = np.float32(update.patients[group_of(name)]) * array
                    total = weighted if total is None else total + weighted
            if total is not None:
                result[name] = np.asarray(total / np.float32(patients[group_of(name)]))
        return Combined(result, patients)


def combiner(reference: Arrays, settings: AggregationSection) -> Combiner:
    """Return what combines the updates of a round."""
    return _Mean(reference)
