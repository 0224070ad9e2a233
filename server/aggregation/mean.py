"""The weighted mean, a parameter group at a time.

McMahan et al., AISTATS 2017 (FedAvg), a group: mean_g = Σ_s n_sg · w_sg / Σ_s n_sg over the sites s that sent it.

Sums of floats depend on their order. `mean` adds in the order of the sites' names, whatever came first, and reads all
updates block by block when the round is over: each number is read once and written once. `ArrivalMean` adds each update
as it comes, which leaves nothing to do at the end and reads and writes the sums once an update.
"""

from collections.abc import Iterable, Sequence
from importlib.util import find_spec

import numpy as np
import torch

from fedpath.core.exchange.groups import group_of
from fedpath.core.exchange.stored import BLOCK, F32
from fedpath.core.exchange.wire import Arrays
from fedpath.server.aggregation.blocks import InTurn
from fedpath.server.aggregation.updates import Combined, Counted, blocks_of, patients_of, tensor_of, values_of

_COMPILES = find_spec("numba") is not None


def mean(values: Iterable[F32], weights: Sequence[float], out: F32) -> None:
    """Write the weighted mean of ``values`` to ``out``: see `fedpath.server.aggregation.blockwise.Reduce`."""
    # Shares, not counts: a sum of counts times weights could leave the float32s.
    total = sum(weights)
    shares = [weight / total for weight in weights]
    if isinstance(values, InTurn) and values.in_files and _from_files(values.in_files, shares, out):
        return
    sums = torch.from_numpy(out)
    for place, (array, share) in enumerate(zip(values, shares, strict=True)):
        flat = tensor_of(array)
        if place == 0:
            torch.mul(flat, share, out=sums)
        else:
            sums.add_(flat, alpha=share)


def _from_files(places: Sequence[tuple[int, int]], shares: Sequence[float], out: F32) -> bool:
    """Write the mean of numbers that lie in files, to the same bits; return whether it could be done."""
    if not _COMPILES:
        return False
    from fedpath.server.aggregation.infiles import weighted_sum

    files_N, offsets_N = np.array(places, np.int64).T.copy()
    # What cannot be read is read again as everything else is, which says why.
    return bool(weighted_sum(files_N, offsets_N, np.array(shares, np.float32), out))


class ArrivalMean:
    """Adds updates as they come; they are not looked at again.

    Args:
        reference: the round's model.
    """

    def __init__(self, reference: Arrays) -> None:
        self._reference = reference
        self._sums: Arrays = {}
        self._counted: list[Counted] = []

    def add(self, update: Counted) -> None:
        """Add one update."""
        buffer = np.empty(BLOCK, np.float32)
        names = sorted(update.sent())
        for name in names:
            if name not in self._sums:
                self._sums[name] = np.zeros_like(self._reference[name])
        for block in blocks_of(names, self._reference):
            sums = torch.from_numpy(self._sums[block.name].reshape(-1)[block.start : block.stop])
            values = values_of(update, block, self._reference, buffer)
            sums.add_(tensor_of(values), alpha=float(update.patients[group_of(block.name)]))
        self._counted.append(update)

    def result(self) -> Combined:
        """Return the mean; the sums become it, so there is nothing to be added afterwards."""
        patients, sums = patients_of(self._counted), self._sums
        self._sums, self._counted = {}, []
        for name, total in sums.items():
            np.divide(total, np.float32(patients[group_of(name)]), out=total)
        return Combined(self._reference | sums, patients)
