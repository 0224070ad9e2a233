"""Updates on disk until they have counted."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from fedpath.core.errors import RefusedError
from fedpath.core.exchange.messages import Receipt, encode
from fedpath.core.exchange.stored import write_arrays
from fedpath.server.spool import Spool
from fedpath.server.talk import Asked, Reply

ARRAYS = {"image/weight": np.arange(6, dtype=np.float32).reshape(2, 3)}


def reply(**values: object) -> Reply:
    return Reply(Asked("A", "1"), Receipt(), 0, 0, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("way", ["content", "file"])
def test_an_update_is_kept_however_it_came(tmp_path: Path, way: str) -> None:
    spool, came = Spool(tmp_path / "updates"), tmp_path / "came"
    with came.open("wb") as file:
        write_arrays(file, ARRAYS)
    ways = {"content": {"content": encode(Receipt(), ARRAYS)}, "file": {"file": came}}
    path, sha256 = spool.keep(reply(**ways[way]))
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert spool.has("A", sha256)
    assert not spool.has("B", sha256)
    with spool.open("A") as update:
        np.testing.assert_array_equal(update.array("image/weight"), ARRAYS["image/weight"])
    assert came.exists() == (way != "file")


def test_an_update_that_has_changed_is_not_here(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    path, sha256 = spool.keep(reply(content=encode(Receipt(), ARRAYS)))
    path.write_bytes(path.read_bytes()[:-1])
    assert not spool.has("A", sha256)
    with pytest.raises(RefusedError, match="not readable"):
        spool.open("A")


def test_what_has_counted_is_removed(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "updates")
    spool.keep(reply(content=encode(Receipt(), ARRAYS)))
    spool.drop("A")
    spool.drop("A")
    assert list((tmp_path / "updates").iterdir()) == []
    spool.clear()
    spool.clear()
    assert not (tmp_path / "updates").exists()
