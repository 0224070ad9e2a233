"""How far a training is: a bar with the latest figures on a terminal, a line a validation in a log or as JSON."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from fedpath.cli import output
from fedpath.core.training import Metrics, Validated
from fedpath.core.training.alone import merit


class TrainingProgress:
    """Follows one training after another; the time left is that of all of them.

    Args:
        name: of what is trained on.
        epochs: planned for each.
        as_json: print lines of JSON instead.
    """

    def __init__(self, name: str, epochs: int, *, as_json: bool = False) -> None:
        self._name, self._left, self._epochs, self._as_json = name, 0, epochs, as_json
        self._console = output.console(quiet=as_json)
        self._moves = output.moves(self._console)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            _TimeLeft(),
            # The last column gives way first on a narrow terminal.
            TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            console=self._console,
            disable=not self._moves,
            expand=True,
            transient=True,
        )
        self._task = self._bar.add_task(name, total=None, figures="")
        self._before = self._done = 0
        self._label = name
        self._best: tuple[int, Metrics] | None = None

    @contextmanager
    def of(self, trainings: int) -> Iterator[None]:
        """Show a bar while the context lasts, for so many trainings."""
        self._left = trainings
        if not trainings:
            yield
            return
        self._bar.start()
        try:
            yield
        finally:
            self._bar.stop()

    def begin(self, label: str) -> None:
        """Start the next training."""
        self._before += self._done
        self._done, self._best = 0, None
        self._label = f"{self._name}{label}"
        self._bar.update(self._task, description=self._label, figures="")

    def bag(self, done: int, total: int, _loss: float) -> None:
        """Count one bag of the training at hand."""
        self._done = done
        self._bar.update(self._task, completed=self._before + done, total=self._before + total * self._left)

    def validated(self, result: Validated) -> None:
        """Show a validation."""
        if self._as_json:
            output.line("validated", training=self._label, epochs=self._epochs, **output.plain(result))
        course = f"epoch {result.epoch}/{self._epochs}, loss {result.train_loss:.3f}"
        figures = ""
        if result.validation is not None:
            if self._best is None or merit(result.validation) > merit(self._best[1]):
                self._best = result.epoch, result.validation
            epoch, best = self._best
            figures = f"validation AUC {_auc(result.validation)}, best {_auc(best)} of epoch {epoch}"
        self._bar.update(self._task, figures=", ".join(filter(None, [figures, course])))
        if not self._moves and not self._as_json:
            self.say(f"{self._label}: " + ", ".join(filter(None, [course, figures])))

    def end(self, line: str) -> None:
        """Finish the training at hand; ``line`` stays on the screen."""
        self._left -= 1
        self.say(line)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self._as_json:
            output.line("said", line=line)
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _auc(metrics: Metrics) -> str:
    return "–" if metrics.auc is None else f"{metrics.auc:.3f}"


class _TimeLeft(ProgressColumn):
    """The time that the trainings still take, once there is something to estimate it from."""

    def render(self, task: Task) -> Text:
        left = task.time_remaining
        return Text("" if left is None else f"{timedelta(seconds=round(left))} left")
