"""SCAFFOLD's c at the coordinator."""

from pathlib import Path

import numpy as np
import pytest

from fedpath.core.exchange.checks import Entitled
from fedpath.core.exchange.groups import CONTROL
from fedpath.core.exchange.stored import BLOCK, ArrayFile, write_arrays
from fedpath.server.control import no_control, sites_by_group, step_control

MODEL = {
    "image/w": np.ones((3, BLOCK // 2), np.float32),
    "image/b": np.ones((), np.float32),
    "clinical/w": np.ones(4, np.float32),
}


def test_c_moves_by_the_mean_of_the_changes_over_those_that_can_train_a_group(tmp_path: Path) -> None:
    random, changes = np.random.default_rng(0), []
    for site, names in (("A", MODEL), ("B", ["image/w", "image/b"])):
        change = {CONTROL + name: random.normal(size=MODEL[name].shape).astype(np.float32) for name in names}
        changes.append(change)
        with (tmp_path / site).open("wb") as file:
            write_arrays(file, change | {name: MODEL[name] for name in names})
    before = no_control(MODEL)
    assert all(not array.any() for array in before.values())
    sites = {"image": 3, "clinical": 2}  # the third did not answer
    after = step_control(before, (ArrayFile(tmp_path / site) for site in "AB"), sites)
    for name, array in after.items():
        group = name.removeprefix(CONTROL).partition("/")[0]
        told = sum(change[name].astype(np.float64) for change in changes if name in change)
        np.testing.assert_allclose(array, told / sites[group], rtol=1e-5, atol=1e-7)
        assert array.shape == MODEL[name.removeprefix(CONTROL)].shape
    assert all(not array.any() for array in before.values())


@pytest.mark.parametrize(("with_clinical", "expected"), [([5, 0, 3], 2), ([0, 0, 0], 1)])
def test_who_can_train_a_group(with_clinical: list[int], expected: int) -> None:
    entitled = {
        str(number): Entitled(8, clinical, clinical_groups=frozenset({"clinical"}))
        for number, clinical in enumerate(with_clinical)
    }
    assert sites_by_group(entitled, MODEL) == {"image": 3, "clinical": expected}
