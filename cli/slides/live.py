"""A bar for work that goes slide by slide; on standard error, so that results can be piped."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(what: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar; yield what is to be called with a slide_id, the slides done before it, and all."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, TextColumn("{task.fields[slide]}", markup=False), console=Console(stderr=True)) as live:
        task = live.add_task(what, total=None, slide="")
        yield lambda slide, done, total: live.update(task, completed=done, total=total, slide=slide)
        if live.tasks[0].total is not None:
            live.update(task, completed=live.tasks[0].total, slide="")
