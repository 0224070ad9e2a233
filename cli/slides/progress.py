"""Live progress of an encode run: bars on a terminal, a line a slide elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedpath.client.slides.outcome import EncodeProgress

Show = Callable[["EncodeProgress"], None]


@contextmanager
def shown() -> Iterator[Show]:
    """Give what is to be called with the progress."""
    if not sys.stdout.isatty():
        yield _Lines()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, TextColumn("{task.fields[left]}")) as live:
        slides = live.add_task("slides", total=None, left="")
        patches = live.add_task("looking for slides", total=None, left="")

        def show(at: "EncodeProgress") -> None:
            left = "" if at.seconds_left is None else f"about {in_words(at.seconds_left)} left"
            live.update(slides, completed=at.index, total=at.total, left=left)
            doing = f"  {at.slide_id}: " + ("patches" if at.tiles_total else "tissue")
            live.update(patches, description=doing, completed=at.tiles_done, total=at.tiles_total or None)

        yield show
        live.remove_task(patches)


class _Lines:
    """One line when a slide begins."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, at: "EncodeProgress") -> None:
        if at.slide_id == self._last:
            return
        self._last = at.slide_id
        left = "" if at.seconds_left is None else f", about {in_words(at.seconds_left)} left"
        print(f"slide {at.index + 1} of {at.total}: {at.slide_id}{left}", flush=True)


def in_words(seconds: float) -> str:
    """Return a duration as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
