"""Live progress of an encode run: bars on a terminal, a line a slide elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fedpath.cli import output

if TYPE_CHECKING:
    from fedpath.client.slides.outcome import EncodeProgress

Show = Callable[["EncodeProgress"], None]


@contextmanager
def shown(*, as_json: bool = False) -> Iterator[Show]:
    """Give what is to be called with the progress."""
    console = output.console(quiet=as_json)
    if not output.moves(console):
        yield _Lines(as_json)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, TextColumn("{task.fields[left]}"), console=console) as live:
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

    def __init__(self, as_json: bool) -> None:
        self._last, self._as_json = "", as_json

    def __call__(self, at: "EncodeProgress") -> None:
        if at.slide_id == self._last:
            return
        self._last = at.slide_id
        if self._as_json:
            output.line("slide", slide_id=at.slide_id, done=at.index, total=at.total, seconds_left=at.seconds_left)
            return
        left = "" if at.seconds_left is None else f", about {in_words(at.seconds_left)} left"
        print(f"slide {at.index + 1} of {at.total}: {at.slide_id}{left}", flush=True)


def in_words(seconds: float) -> str:
    """Return a duration as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
