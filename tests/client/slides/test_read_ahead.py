"""Patches come in order and whole, ahead of the encoder but not further than allowed; nothing stays open."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fedpath.client.slides.outcome import SlideResult
from fedpath.client.slides.prepare import Job, Prepared
from fedpath.client.slides.read_ahead import ReadAhead, Reading
from fedpath.client.slides.reader import UnreadableError
from fedpath.client.slides.settings import EncodeSettings
from fedpath.core.bags import FeatureMeta
from fedpath.core.errors import DataError

EDGE, BATCH = 16, 10


@dataclass
class NumberedSlide:
    """A slide whose patch at (x, y) is filled with x; some cannot be read, one breaks the slide."""

    unreadable: frozenset[int] = frozenset()
    breaks_at: int | None = None
    read_so_far: list[int] = field(default_factory=list)
    closed: bool = False

    def read(self, x: int, y: int, *, mpp: float, size: int) -> NDArray[np.uint8]:
        assert not self.closed
        assert (y, mpp, size) == (0, 0.5, EDGE)
        self.read_so_far.append(x)
        if x in self.unreadable:
            raise UnreadableError
        if x == self.breaks_at:
            raise DataError("gone", remedy="put it back")
        return np.full((size, size, 3), x, np.uint8)

    def close(self) -> None:
        self.closed = True


def settings(readers: int = 3) -> EncodeSettings:
    return EncodeSettings(0.5, EDGE, batch=BATCH, readers=readers)


def prepared(slide: NumberedSlide, patches: int) -> Prepared:
    corners_N2 = np.stack([np.arange(patches), np.zeros(patches, np.int64)], axis=1)
    meta = FeatureMeta("s", "e", "0", 0.5, 0.5, EDGE, EDGE, 1, 1, "t", "r", "0", 0)
    return Prepared(slide, corners_N2, meta, 0.0)  # type: ignore[arg-type]


def jobs(count: int) -> Iterator[Job]:
    return (Job(Path(f"{number}.tif"), Path(), None) for number in range(count))


@pytest.mark.parametrize("readers", [1, 5])
def test_every_patch_of_every_slide_comes_once_and_in_order(readers: int) -> None:
    slides = [NumberedSlide(frozenset({3, 21})) for _ in range(4)]
    counts = [35, 1, 10, 52]

    def prepare(job: Job) -> Prepared | SlideResult:
        number = int(job.slide_id)
        if number == 4:
            return SlideResult("4", 1, 0, 0.5)
        if number == 5:
            raise DataError("bad", remedy="none")
        return prepared(slides[number], counts[number])

    kinds = []
    with ReadAhead(jobs(6), prepare, settings(readers)) as ahead:
        for number, (job, found) in enumerate(ahead):
            assert job.slide_id == str(number)
            kinds.append(type(found).__name__)
            if not isinstance(found, Reading):
                continue
            values, read = [], []
            for patches, read_B in found.batches():
                assert len(read_B) <= BATCH
                assert (patches == patches[:, :1, :1, :1]).all()
                values += patches[:, 0, 0, 0].tolist()
                read += read_B.tolist()
            expected = [x not in (3, 21) for x in range(counts[number])]
            assert read == expected
            assert values == [x for x in range(counts[number]) if expected[x]]
    assert kinds == ["Reading"] * 4 + ["SlideResult", "DataError"]
    assert all(slide.closed for slide in slides)
    assert ahead.waited > 0


def test_reading_stays_within_its_bound_and_goes_on_to_the_next_slide() -> None:
    slides = [NumberedSlide(), NumberedSlide()]
    with ReadAhead(jobs(2), lambda job: prepared(slides[int(job.slide_id)], 30), settings()) as ahead:
        in_turn = iter(ahead)
        _, first = next(in_turn)
        assert isinstance(first, Reading)
        batches = first.batches()
        for taken in range(1, 4):
            next(batches)
            begun = len(slides[0].read_so_far) + len(slides[1].read_so_far)
            assert begun <= (taken + 3) * BATCH
    del in_turn
    assert slides[0].closed


def test_the_next_slide_is_read_while_the_last_patches_of_this_one_are_encoded() -> None:
    slides, ready, prepared_too = [NumberedSlide(), NumberedSlide()], threading.Event(), threading.Event()
    read = slides[1].read

    def watched(*args: int, **more: float) -> NDArray[np.uint8]:
        ready.set()
        return read(*args, **more)  # type: ignore[arg-type]

    slides[1].read = watched  # type: ignore[method-assign]

    def prepare(job: Job) -> Prepared:
        if job.slide_id == "1":
            prepared_too.set()
        return prepared(slides[int(job.slide_id)], 30)

    with ReadAhead(jobs(2), prepare, settings()) as ahead:
        in_turn = iter(ahead)
        _, first = next(in_turn)
        assert isinstance(first, Reading)
        assert prepared_too.wait(10)
        batches = first.batches()
        for _ in range(3):
            next(batches)
        # The encoder would be at the last batch of the first slide now.
        assert ready.wait(10)


def test_a_slide_that_breaks_ends_alone() -> None:
    slides = [NumberedSlide(breaks_at=12), NumberedSlide()]
    outcomes = []
    with ReadAhead(jobs(2), lambda job: prepared(slides[int(job.slide_id)], 40), settings()) as ahead:
        for _, found in ahead:
            assert isinstance(found, Reading)
            try:
                outcomes.append(sum(len(patches) for patches, _ in found.batches()))
            except DataError as error:
                outcomes.append(error.message)
    assert outcomes == ["gone", 40]
    assert all(slide.closed for slide in slides)


def test_who_stops_in_the_middle_leaves_nothing_open() -> None:
    slides = [NumberedSlide() for _ in range(3)]
    before = threading.active_count()

    def stop() -> None:
        with ReadAhead(jobs(3), lambda job: prepared(slides[int(job.slide_id)], 100), settings()) as ahead:
            for _, found in ahead:
                assert isinstance(found, Reading)
                next(found.batches())
                raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        stop()
    assert threading.active_count() == before
    assert all(slide.closed for slide in slides if slide.read_so_far)
