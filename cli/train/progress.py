"""How far a training is: a bar with the latest figures on a terminal, a line a validation in a log."""

from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from fedpath.core.training import Metrics, Validated
from fedpath.core.training.alone import merit


class TrainingProgress:
    """Follows one training after another; the time left is that of all of them.

    Args:
        name: of what is trained on.
        trainings: how many there will be.
        epochs: planned for each.
    """

    def __init__(self, name: str, trainings: int, epochs: int) -> None:
        self._name, self._left, self._epochs = name, trainings, epochs
        self._console = Console()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            _TimeLeft(),
            # The last column gives way first on a narrow terminal.
            TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            console=self._console,
            disable=not self._console.is_terminal or not trainings,
            expand=True,
            transient=True,
        )
        self._task = self._bar.add_task(name, total=None, figures="")
        self._before = self._done = 0
        self._label = name
        self._best: tuple[int, Metrics] | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        course = f"epoch {result.epoch}/{self._epochs}, loss {result.train_loss:.3f}"
        figures = ""
        if result.validation is not None:
            if self._best is None or merit(result.validation) > merit(self._best[1]):
                self._best = result.epoch, result.validation
            epoch, best = self._best
            figures = f"validation AUC {_auc(result.validation)}, best {_auc(best)} of epoch {epoch}"
        self._bar.update(self._task, figures=", ".join(filter(None, [figures, course])))
        if not self._console.is_terminal:
            self.say(f"{self._label}: " + ", ".join(filter(None, [course, figures])))

    def end(self, line: str) -> None:
        """Finish the training at hand; ``line`` stays on the screen."""
        self._left -= 1
        self.say(line)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _auc(metrics: Metrics) -> str:
    return "–" if metrics.auc is None else f"{metrics.auc:.3f}"


class _TimeLeft(ProgressColumn):
    """The time that the trainings still take, once there is something to estimate it from."""

    def render(self, task: Task) -> Text:
        left = task.time_remaining
        return Text("" if left is None else f"{timedelta(seconds=round(left))} left")
