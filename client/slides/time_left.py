"""How long an encode run will still take.

How many patches a slide has is known only when it is opened, the sizes of the files from the start: work is counted in
bytes of slides. Slides that were done before count for nothing, neither as work nor as time.
"""

from collections.abc import Mapping
from pathlib import Path


class TimeLeft:
    """An estimate from the bytes that are done and the time they took."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        """Know the size of every slide, by slide_id."""
        self._sizes, self._open = dict(sizes), dict.fromkeys(sizes, 1.0)
        self._worked = 0.0
        self._started: float | None = None

    def update(self, slide_id: str, share: float, now: float) -> None:
        """Note that a share (0 to 1) of a slide is done, at a time of a steady clock."""
        if self._started is None:
            self._started = now
        self._worked += (share - (1 - self._open[slide_id])) * self._sizes[slide_id]
        self._open[slide_id] = 1 - share

    def no_work(self, slide_id: str) -> None:
        """Note that nothing more is to be done about a slide: it was there already, or is quarantined."""
        self._open[slide_id] = 0.0

    def left(self, now: float) -> float | None:
        """Return seconds, None while nothing is known."""
        if self._started is None or self._worked <= 0:
            return None
        ahead = sum(self._sizes[name] * share for name, share in self._open.items())
        return (now - self._started) * ahead / self._worked


def size_of(path: Path) -> int:
    """Return the bytes of a slide, with the folder beside it that some formats have (MIRAX)."""
    companion = path.with_suffix("")
    parts = [path, *companion.rglob("*")] if companion.is_dir() else [path]
    return sum(part.stat().st_size for part in parts if part.is_file())
