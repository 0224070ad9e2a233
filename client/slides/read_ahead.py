"""Patches read by threads while the encoder works, across the border from one slide to the next.

While a slide is encoded, the one after it is opened, hashed and searched for tissue, and its first patches are read.
How far reading may be ahead is bounded, so that memory is too.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fedpath.client.slides.outcome import SlideResult
from fedpath.client.slides.prepare import Job, Prepared
from fedpath.client.slides.reader import Slide, UnreadableError
from fedpath.client.slides.settings import EncodeSettings
from fedpath.core.errors import DataError

_AHEAD = 4
"""Batches that may be read or being read: one that is encoded next and some for the threads."""
_CHUNK = 8
"""Patches a thread reads at a time, from one row: neighbours share tiles."""


class _Batch:
    """Patches of one batch, filled in by several threads."""

    def __init__(
        self, pool: ThreadPoolExecutor, slide: Slide, corners_B2: NDArray[np.int64], settings: EncodeSettings
    ) -> None:
        edge, count = settings.patch_px, len(corners_B2)
        self._patches_BHWC = np.empty((count, edge, edge, 3), np.uint8)
        self._read_B = np.zeros(count, np.bool_)
        self._mpp = settings.mpp
        parts = (slice(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK))
        self._parts = [pool.submit(self._fill, slide, corners_B2, part) for part in parts]

    def _fill(self, slide: Slide, corners_B2: NDArray[np.int64], part: slice) -> None:
        for place in range(part.start, part.stop):
            x, y = corners_B2[place].tolist()
            try:
                self._patches_BHWC[place] = slide.read(x, y, mpp=self._mpp, size=self._patches_BHWC.shape[1])
            except UnreadableError:
                continue
            self._read_B[place] = True

    def result(self) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return the patches that could be read, and which of all those are; waits for them."""
        for part in self._parts:
            part.result()
        whole = bool(self._read_B.all())
        return self._patches_BHWC if whole else self._patches_BHWC[self._read_B], self._read_B

    def cancel(self) -> None:
        """Let it go; returns when no thread is at it any more."""
        for part in self._parts:
            if not part.cancel():
                part.exception()


@dataclass(slots=True)
class _Queued:
    """A slide whose reading has begun, or what became of it instead."""

    job: Job
    found: Prepared | SlideResult | DataError
    next_start: int = 0
    batches: deque[_Batch] = field(default_factory=deque)

    @property
    def all_begun(self) -> bool:
        return not isinstance(self.found, Prepared) or self.next_start >= len(self.found.corners_N2)


class Reading:
    """The patches of one slide, in order."""

    def __init__(self, ahead: "ReadAhead", queued: _Queued, prepared: Prepared) -> None:
        self._ahead, self._queued, self.prepared = ahead, queued, prepared

    def batches(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
        """Yield for each batch the patches that could be read (R×H×W×3) and which of all its patches those are (B).

        Raises:
            DataError: the slide cannot be read any further.
        """
        while batch := self._ahead.next_batch(self._queued):
            yield batch


class ReadAhead:
    """Slides and their patches, ahead of who encodes them. One thread takes them, in order.

    Attributes:
        waited: seconds that this thread waited for patches or for a slide's preparation.
    """

    def __init__(
        self, jobs: Iterator[Job], prepare: Callable[[Job], Prepared | SlideResult], settings: EncodeSettings
    ) -> None:
        """Take slides from ``jobs``, which may block, one ahead of what is being read."""
        self._jobs, self._prepare, self._settings = jobs, prepare, settings
        self._readers = ThreadPoolExecutor(settings.readers, thread_name_prefix="reader")
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix="preparer")
        self._coming: Future[_Queued | None] | None = None
        self._queue: deque[_Queued] = deque()
        self._begun = 0
        self.waited = 0.0

    def __enter__(self) -> Self:
        self._coming = self._preparer.submit(self._prepare_next)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End the threads and close what is open."""
        while self._queue:
            self._leave(self._queue.popleft())
        self._preparer.shutdown(wait=True)
        if self._coming is not None and self._coming.exception() is None:
            coming = self._coming.result()
            if coming is not None:
                self._leave(coming)
        self._readers.shutdown(wait=True)

    def __iter__(self) -> Iterator[tuple[Job, Reading | SlideResult | DataError]]:
        """Yield each slide: its patches, or the result that is there, or why it cannot be encoded."""
        while True:
            if not self._queue and not self._take(wait=True):
                return
            queued = self._queue[0]
            try:
                yield (
                    queued.job,
                    Reading(self, queued, queued.found) if isinstance(queued.found, Prepared) else queued.found,
                )
            finally:
                if self._queue and self._queue[0] is queued:
                    self._leave(self._queue.popleft())

    def next_batch(self, queued: _Queued) -> tuple[NDArray[np.uint8], NDArray[np.bool_]] | None:
        """Return the slide's next batch, None after its last."""
        self._read_on()
        if not queued.batches:
            return None
        started = time.monotonic()
        try:
            return queued.batches[0].result()
        finally:
            self.waited += time.monotonic() - started
            queued.batches.popleft().cancel()
            self._begun -= 1

    def _read_on(self) -> None:
        """Begin to read batches, as many as may be ahead."""
        while self._begun < _AHEAD:
            newest = self._queue[-1]
            if newest.all_begun:
                if not self._take(wait=False):
                    return
                continue
            assert isinstance(newest.found, Prepared)
            corners_N2, start = newest.found.corners_N2, newest.next_start
            newest.next_start = start + self._settings.batch
            corners_B2 = corners_N2[start : newest.next_start]
            newest.batches.append(_Batch(self._readers, newest.found.slide, corners_B2, self._settings))
            self._begun += 1

    def _take(self, *, wait: bool) -> bool:
        """Queue the slide that is being prepared; return whether there was one."""
        if self._coming is None or not (wait or self._coming.done()):
            return False
        started = time.monotonic()
        queued = self._coming.result()
        self.waited += time.monotonic() - started
        self._coming = None if queued is None else self._preparer.submit(self._prepare_next)
        if queued is not None:
            self._queue.append(queued)
        return queued is not None

    def _prepare_next(self) -> _Queued | None:
        job = next(self._jobs, None)
        if job is None:
            return None
        try:
            return _Queued(job, self._prepare(job))
        except DataError as error:
            return _Queued(job, error)

    def _leave(self, queued: _Queued) -> None:
        """Close a slide, whether it was read to its end or not."""
        self._begun -= len(queued.batches)
        for batch in queued.batches:
            batch.cancel()
        queued.batches.clear()
        queued.next_start = 1 << 62
        if isinstance(queued.found, Prepared):
            queued.found.slide.close()
