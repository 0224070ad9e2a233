"""What a hospital carries from round to round."""

from pathlib import Path

import numpy as np
import pytest

from fedpath.client.agent.memory import SiteMemory
from fedpath.core.errors import DataError


def test_what_was_kept_with_a_round_comes_back_with_its_bits(tmp_path: Path) -> None:
    memory = SiteMemory(tmp_path)
    memory.keep(1, {"personal:image/w": np.array([[1.5, -2.0]], np.float32)}, counted=0)
    memory.keep(2, {"personal:image/w": np.array([[3.0, 4.0]], np.float32)}, counted=1)
    assert memory.load(1)["personal:image/w"].tolist() == [[1.5, -2.0]]
    # Another process, as after a kill.
    assert SiteMemory(tmp_path).load(2)["personal:image/w"].tolist() == [[3.0, 4.0]]


def test_nothing_counted_yet_or_lost_is_nothing(tmp_path: Path) -> None:
    memory = SiteMemory(tmp_path)
    assert memory.load(0) == {}
    assert memory.load(7) == {}


def test_what_the_next_order_needs_stays_however_many_updates_were_dropped_since(tmp_path: Path) -> None:
    memory = SiteMemory(tmp_path)
    for round_ in range(1, 12):
        memory.keep(round_, {"control:image/w": np.full(3, round_, np.float32)}, counted=1)
    assert memory.load(1)["control:image/w"].tolist() == [1, 1, 1]


def test_only_the_last_rounds_are_kept(tmp_path: Path) -> None:
    memory = SiteMemory(tmp_path)
    for round_ in range(1, 8):
        memory.keep(round_, {"control:image/w": np.full(3, round_, np.float32)}, counted=round_ - 1)
    assert [bool(memory.load(round_)) for round_ in range(1, 8)] == [False, False, True, True, True, True, True]


def test_what_goes_with_the_best_model_stays_however_long_ago_it_was(tmp_path: Path) -> None:
    memory = SiteMemory(tmp_path)
    for round_ in range(1, 12):
        memory.keep(round_, {"personal:image/w": np.full(3, round_, np.float32)}, counted=round_ - 1, best=2)
    assert [round_ for round_ in range(1, 12) if memory.load(round_)] == [2, 7, 8, 9, 10, 11]
    memory.keep(12, {"personal:image/w": np.full(3, 12, np.float32)}, counted=11, best=9)
    assert [round_ for round_ in range(1, 13) if memory.load(round_)] == [8, 9, 10, 11, 12]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    memory = SiteMemory(tmp_path)
    memory.keep(3, {"control:image/w": np.zeros(3, np.float32)}, counted=0)
    path = tmp_path / "kept/0003.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"0003\.safetensors: what was kept with round 3 is damaged") as caught:
        memory.load(3)
    assert "remove the file" in caught.value.remedy
