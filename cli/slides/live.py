"""Progress of work that goes slide by slide; on standard error, so that results can be piped."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fedpath.cli import output

Show = Callable[[str, int, int], None]
"""Called with a slide_id, the slides done before it, and all."""
_TELL_EVERY_S = 15.0


@contextmanager
def bar(what: str, *, quiet: bool = False) -> Iterator[Show]:
    """Yield what is to be called with the progress: a bar on a terminal, now and then a line elsewhere.

    Args:
        what: is done with the slides.
        quiet: show nothing.
    """
    console = output.console(stderr=True, quiet=quiet)
    if not output.moves(console):
        yield _Lines(what, quiet)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, TextColumn("{task.fields[slide]}", markup=False), console=console) as live:
        task = live.add_task(what, total=None, slide="")
        yield lambda slide, done, total: live.update(task, completed=done, total=total, slide=slide)
        if live.tasks[0].total is not None:
            live.update(task, completed=live.tasks[0].total, slide="")


class _Lines:
    """A line from time to time, for a log; none for work that is done at once."""

    def __init__(self, what: str, quiet: bool) -> None:
        self._what, self._quiet = what, quiet
        self._told = time.monotonic()

    def __call__(self, slide: str, done: int, total: int) -> None:
        now = time.monotonic()
        if not self._quiet and now - self._told >= _TELL_EVERY_S:
            self._told = now
            output.note(f"{self._what}: {done} of {total}{f': {slide}' if slide else ''}")
