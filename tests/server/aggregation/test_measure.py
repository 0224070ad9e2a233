"""How far an update moved the model."""

from pathlib import Path

import numpy as np
import pytest
from stored_updates import drawn, stored

from fedpath.core.errors import RefusedError
from fedpath.core.exchange.groups import CONTROL
from fedpath.core.exchange.stored import BLOCK, CHANGES
from fedpath.server.aggregation import measure

SHAPES = {"image/w": (3, BLOCK), "image/b": (), "clinical/w": (5,)}
REFERENCE = drawn(1, SHAPES)


def test_the_norm_is_that_of_the_change_by_group(tmp_path: Path) -> None:
    arrays = drawn(2, SHAPES)
    literal = {"image": 0.0, "clinical": 0.0}
    for name, array in arrays.items():
        change = array.astype(np.float64) - REFERENCE[name]
        literal[name.partition("/")[0]] += float((change * change).sum())
    assert measure(stored(tmp_path, "A", arrays), REFERENCE) == pytest.approx(
        {group: square**0.5 for group, square in literal.items()}, rel=1e-6
    )


def test_changes_are_measured_as_they_are(tmp_path: Path) -> None:
    changes = {"clinical/w": np.array([3, 0, 0, 4, 0], np.float32)}
    assert measure(stored(tmp_path, "A", changes, {CHANGES: "true"}), REFERENCE) == {"clinical": 5.0}


def test_what_did_not_move_has_norm_zero(tmp_path: Path) -> None:
    assert measure(stored(tmp_path, "A", REFERENCE), REFERENCE) == {"image": 0.0, "clinical": 0.0}


def test_one_number_that_moved_is_a_change_however_small(tmp_path: Path) -> None:
    arrays = {name: array.copy() for name, array in REFERENCE.items()}
    arrays["clinical/w"][3] = np.nextafter(arrays["clinical/w"][3], np.float32(9))
    tiny = {"clinical/w": np.array([0, 1e-40, 0, 0, 0], np.float32)}
    assert measure(stored(tmp_path, "A", arrays), REFERENCE)["clinical"] > 0
    assert measure(stored(tmp_path, "B", tiny, {CHANGES: "true"}), REFERENCE)["clinical"] == pytest.approx(
        1e-40, rel=1e-4
    )


def test_the_largest_numbers_are_measured(tmp_path: Path) -> None:
    largest = float(np.finfo(np.float32).max)
    arrays = {"clinical/w": np.full(5, largest, np.float32)}
    assert measure(stored(tmp_path, "A", arrays), REFERENCE)["clinical"] == pytest.approx(largest * 5**0.5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["image/w", "image/b", "clinical/w", CONTROL + "clinical/w"])
def test_what_is_not_finite_is_refused(tmp_path: Path, name: str, value: float) -> None:
    arrays = drawn(2, SHAPES) | {CONTROL + "clinical/w": np.zeros(5, np.float32)}
    arrays[name].flat[-1] = value
    with pytest.raises(RefusedError, match=f"^{name} holds NaN or infinite values"):
        measure(stored(tmp_path, "A", arrays), REFERENCE)
