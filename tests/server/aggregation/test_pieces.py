"""Pieces of a pass, without a cluster: what an actor makes of them, whether it sees the files or is sent the blocks."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored_updates import counted, drawn

from fedpath.core.config.federated import AggregationSection
from fedpath.core.exchange.stored import BLOCK
from fedpath.core.exchange.wire import Arrays, hash_arrays
from fedpath.server.aggregation import Counted, LocalPasses, combiner
from fedpath.server.aggregation.engine import RayPasses
from fedpath.server.aggregation.pieces import Pass, Piece, Source, UnseenError, read_all, work

SHAPES = {"image/w": (12, BLOCK), "image/b": (7,), "clinical/w": (3,), "norm/s": ()}
REFERENCE = drawn(1, SHAPES)


class Here:
    """Does a pass in this process, in a turn of its own; everything passes through its bytes, as to another one."""

    def __init__(self, sees: bool) -> None:
        self._sees = sees
        self.pieces = 0

    def do(self, of_pass: Pass, pieces: list[Piece], fill: Callable[[Piece], Piece], take: Callable[..., None]) -> None:
        there = pickle.loads(pickle.dumps(of_pass))  # noqa: S301 - our own
        for piece in reversed(pieces):
            filled = pickle.loads(pickle.dumps(fill(piece)))  # noqa: S301
            sent = None if self._sees else read_all(there, filled)
            for rows in sent or ():
                rows.flags.writeable = False  # as in Ray's store
            take(piece, work(there, filled, sent))
            self.pieces += 1


@pytest.fixture
def updates(tmp_path: Path) -> list[Counted]:
    """Of seven hospitals; some without a group, one late, one shortened."""
    image = {name: shape for name, shape in SHAPES.items() if name.startswith("image")}
    made = [counted(tmp_path, name, drawn(seed, SHAPES), seed) for seed, name in enumerate("ABC", start=3)]
    made += [counted(tmp_path, name, drawn(seed, image), seed) for seed, name in enumerate("DE", start=6)]
    made.append(counted(tmp_path, "F", drawn(8, SHAPES), 2.5, base=drawn(9, SHAPES)))
    made.append(counted(tmp_path, "G", drawn(10, SHAPES), 4, shrink=0.25))
    return made


@pytest.mark.parametrize("sees", [True, False])
@pytest.mark.parametrize("combine", ["mean", "median", "multi-krum", "bulyan"])
def test_the_bits_of_the_local_engine(updates: list[Counted], combine: Any, sees: bool) -> None:
    settings, here = AggregationSection(combine=combine, byzantine=0), Here(sees)

    def result(engine: Callable[[Arrays], Any]) -> Any:
        adding = combiner(REFERENCE, settings, engine)
        for update in updates:
            adding.add(update)
        return adding.result()

    one, other = result(lambda reference: RayPasses(here, reference)), result(LocalPasses)  # type: ignore[arg-type]
    assert hash_arrays(one.arrays) == hash_arrays(other.arrays)
    assert (one.patients, one.chosen) == (other.patients, other.chosen)
    assert here.pieces > 1


def test_another_file_under_the_same_path_is_not_taken_for_it(updates: list[Counted]) -> None:
    source = Source.of(updates[0])
    source.open().close()
    content = source.path.read_bytes()
    source.path.unlink()
    with pytest.raises(UnseenError):
        source.open()
    source.path.write_bytes(content)
    os.utime(source.path, ns=(1, 1))
    with pytest.raises(UnseenError, match="another file"):
        source.open()
    assert np.isfinite(updates[0].arrays.array("image/b")).all()  # who has it open has the old one
