"""SCAFFOLD's control variate at the coordinator (Karimireddy et al., ICML 2020): c ← c + 1/N · Σ_s Δc_s.

N is the number of hospitals that take part, whether or not they answered, and of a parameter group those that can have
trained it: of a group that only patients with clinical data train, the hospitals that have such. Δc_s comes with the
update of a site that did answer. A site may leave arrays out that it did not train: their Δc_s is 0. The sum goes over
the sites in the order of their names, whatever came first.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from fedpath.core.exchange.checks import Entitled
from fedpath.core.exchange.groups import CONTROL, group_of
from fedpath.core.exchange.stored import BLOCK, ArrayFile
from fedpath.core.exchange.wire import Arrays


def no_control(model: Arrays) -> Arrays:
    """Return the control variate before round 1: zeros, named `CONTROL` + "group/parameter"."""
    return {CONTROL + name: np.zeros_like(array) for name, array in model.items()}


def sites_by_group(entitled: Mapping[str, Entitled], names: Iterable[str]) -> dict[str, int]:
    """Return N of each group: the hospitals that can have trained it, at least one.

    Args:
        entitled: what each hospital that takes part may send.
        names: of the model's arrays, "group/parameter".
    """
    return {
        group: max(1, sum(site.fault_of(group, 1) is None for site in entitled.values()))
        for group in {group_of(name) for name in names}
    }


def step_control(control: Arrays, updates: Iterable[ArrayFile], sites: Mapping[str, int]) -> Arrays:
    """Return the control variate after a round.

    Args:
        control: before it; stays as it is.
        updates: those that counted, in the order of the sites' names.
        sites: N, by group.
    """
    after = {name: array.copy() for name, array in control.items()}
    buffer = np.empty(BLOCK, np.float32)
    for update in updates:
        for name in sorted(update.names & after.keys()):
            flat = after[name].reshape(-1)
            share = np.float32(1 / sites[group_of(name.removeprefix(CONTROL))])
            for start in range(0, flat.size, BLOCK):
                stop = min(start + BLOCK, flat.size)
                flat[start:stop] += share * update.block(name, start, stop, buffer)
    return after
