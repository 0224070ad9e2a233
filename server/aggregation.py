"""The mean of the sites' updates, a parameter group at a time, weighted by the patients that trained the group.

McMahan et al., AISTATS 2017 (FedAvg), a group: mean_g = Σ_s n_sg · w_sg / Σ_s n_sg over the sites s that sent it.
Updates are added one by one and can be dropped at once: memory is the sums and one update, for any number of sites.
Float sums depend on the order, so the caller adds the sites in a fixed one.
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from fedpath.core.exchange.groups import group_of
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
