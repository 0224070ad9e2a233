"""What orders lend out: one file for all sites, for those that were asked, as long as somebody needs it."""

from pathlib import Path

import numpy as np
import pytest

from fedpath.core.exchange.parcel import map_arrays
from fedpath.core.exchange.wire import Apart, Arrays
from fedpath.core.files import sha256_file
from fedpath.server.tensors.outgoing import Outgoing

MODEL: Arrays = {"image/w": np.arange(6, dtype=np.float32).reshape(2, 3)}
OTHER: Arrays = {"image/w": np.ones((2, 3), np.float32)}


@pytest.fixture
def outgoing(tmp_path: Path) -> Outgoing:
    """A folder in which a killed coordinator left something."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.safetensors").write_bytes(b"x")
    return Outgoing(tmp_path / "out")


def files(tmp_path: Path) -> set[str]:
    return {path.name.partition(".")[0] for path in (tmp_path / "out").glob("*")}


def test_a_file_is_for_those_that_were_asked(outgoing: Outgoing, tmp_path: Path) -> None:
    assert files(tmp_path) == set()
    apart = outgoing.write(MODEL, "m")
    outgoing.lend(apart, "A")
    assert outgoing.open(apart, "B") is None
    assert outgoing.open(Apart(apart.sha256, apart.size + 1), "A") is None
    assert outgoing.open(Apart("0" * 64, apart.size), "A") is None
    file = outgoing.open(apart, "A")
    assert file is not None
    with file:
        assert len(file.read()) == apart.size
    path = tmp_path / "out" / f"{apart.sha256}.safetensors"
    assert sha256_file(path) == apart.sha256
    np.testing.assert_array_equal(map_arrays(path)["image/w"], MODEL["image/w"])
    outgoing.take_back(apart, "A")
    assert outgoing.open(apart, "A") is None


def test_the_same_arrays_are_written_once(outgoing: Outgoing, tmp_path: Path) -> None:
    first = outgoing.write(MODEL, "m")
    written = (tmp_path / "out" / f"{first.sha256}.safetensors").stat()
    assert outgoing.write(MODEL, "m") == first
    assert (tmp_path / "out" / f"{first.sha256}.safetensors").stat() == written
    # Nothing says that these are the same ones.
    assert outgoing.write(OTHER, None) != first


def test_a_file_stays_while_an_order_is_open_or_it_is_the_newest(outgoing: Outgoing, tmp_path: Path) -> None:
    first = outgoing.write(MODEL, "m")
    outgoing.lend(first, "A")
    outgoing.lend(first, "A")
    second = outgoing.write(OTHER, "o")
    assert files(tmp_path) == {first.sha256, second.sha256}
    outgoing.take_back(first, "A")
    assert files(tmp_path) == {first.sha256, second.sha256}
    outgoing.take_back(first, "A")
    assert files(tmp_path) == {second.sha256}
    outgoing.write(MODEL, "m")
    assert files(tmp_path) == {first.sha256}
    outgoing.clear()
    assert files(tmp_path) == set()
