"""SCAFFOLD's control variate at the coordinator (Karimireddy et al., ICML 2020): c ← c + 1/N · Σ_s Δc_s.

N is the number of hospitals that take part, whether or not they answered; Δc_s comes with the update of a site that
did. A site may leave arrays out that it did not train: their Δc_s is 0. The sum goes over the sites in the order of
their names, whatever came first.
"""

from collections.abc import Iterable

import numpy as np

from fedpath.core.exchange.groups import CONTROL
from fedpath.core.exchange.stored import BLOCK, ArrayFile
from fedpath.core.exchange.wire import Arrays


def no_control(model: Arrays) -> Arrays:
    """Return the control variate before round 1: zeros, named `CONTROL` + "group/parameter"."""
    return {CONTROL + name: np.zeros_like(array) for name, array in model.items()}


def step_control(control: Arrays, updates: Iterable[ArrayFile], sites: int) -> Arrays:
    """Return the control variate after a round.

    Args:
        control: before it; stays as it is.
        updates: those that counted, in the order of the sites' names.
        sites: N.
    """
    after = {name: array.copy() for name, array in control.items()}
    buffer = np.empty(BLOCK, np.float32)
    share = np.float32(1 / sites)
    for update in updates:
        for name in sorted(update.names & after.keys()):
            flat = after[name].reshape(-1)
            for start in range(0, flat.size, BLOCK):
                stop = min(start + BLOCK, flat.size)
                flat[start:stop] += share * update.block(name, start, stop, buffer)
    return after
