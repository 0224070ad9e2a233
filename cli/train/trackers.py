"""Where curves go besides the files: TensorBoard and MLflow. A tracker gets means over slides, and nothing else."""

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from fedpath.core.errors import ConfigError
from fedpath.core.training import Validated


class Tracker(Protocol):
    """Takes one number at a time."""

    def scalar(self, name: str, value: float, step: int) -> None:
        """Record a figure after ``step`` epochs."""

    def close(self, *, failed: bool = False) -> None:
        """Say that the run is over."""


@dataclass(frozen=True, slots=True)
class Tracking:
    """What ``fedpath train`` was asked to track with."""

    tensorboard: Path | None
    """Folder for the event files."""
    mlflow: str | None
    """Where MLflow is."""
    experiment: str
    run: str
    """Names in MLflow."""

    def check(self) -> None:
        """Complain about a missing package before anything is trained.

        Raises:
            ModuleNotFoundError: of tensorboard, which the command line turns into the extra that brings it.
            ConfigError: of mlflow.
        """
        if self.tensorboard is not None:
            import tensorboard  # noqa: F401
        if self.mlflow is not None and find_spec("mlflow") is None:
            raise ConfigError("--mlflow needs mlflow, which is not installed", remedy="pip install mlflow-skinny")

    @contextmanager
    def open(self, fold: int | None) -> Iterator[Sequence[Tracker]]:
        """Yield the trackers of one training.

        Raises:
            ConfigError: MLflow is not there.
        """
        trackers: list[Tracker] = []
        failed = True
        try:
            if self.tensorboard is not None:
                trackers.append(TensorBoard(self.tensorboard / (f"fold-{fold}" if fold else "")))
            if self.mlflow is not None:
                trackers.append(MLflow(self.mlflow, self.experiment, self.run + (f" fold {fold}" if fold else "")))
            yield trackers
            failed = False
        finally:
            for tracker in trackers:
                tracker.close(failed=failed)


def track(trackers: Sequence[Tracker], result: Validated, learning_rate: float) -> None:
    """Hand one validation to the trackers."""
    figures: dict[str, float | None] = {"train/loss": result.train_loss, "train/learning_rate": learning_rate}
    if result.validation is not None:
        figures |= {
            "validation/loss": result.validation.loss,
            "validation/auc": result.validation.auc,
            "validation/balanced_accuracy": result.validation.balanced_accuracy,
            "validation/macro_f1": result.validation.macro_f1,
        }
    track_figures(trackers, figures, result.epoch)


def track_figures(trackers: Sequence[Tracker], figures: Mapping[str, float | None], step: int) -> None:
    """Hand named figures to the trackers; those that are undefined are left out."""
    for tracker in trackers:
        for name, value in figures.items():
            if value is not None:
                tracker.scalar(name, value, step)


class TensorBoard:
    """Event files in a folder; those of an earlier training there are replaced, as its models are."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer: Any = SummaryWriter(str(folder))

    def scalar(self, name: str, value: float, step: int) -> None:
        """Write a figure."""
        self._writer.add_scalar(name, value, step)

    def close(self, *, failed: bool = False) -> None:
        """Write what is still in memory."""
        self._writer.close()


class MLflow:
    """A run of an MLflow experiment, through the client only: no user, host, path or code version is recorded."""

    def __init__(self, uri: str, experiment: str, run: str) -> None:
        # Unless told not to, MLflow reports its use to its makers and waits minutes for a server that is not there.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._error = MlflowException
        try:
            self._client = MlflowClient(tracking_uri=uri)
            known = self._client.get_experiment_by_name(experiment)
            identity = self._client.create_experiment(experiment) if known is None else known.experiment_id
            self._run: str | None = self._client.create_run(identity, run_name=run).info.run_id
        except MlflowException as error:
            raise ConfigError(
                f"--mlflow {uri}: {_first_line(error)}",
                remedy="name a server that runs (http://HOST:PORT) or a database file (sqlite:///mlflow.db)",
            ) from None

    def scalar(self, name: str, value: float, step: int) -> None:
        """Send a figure; a server that went away costs the curve and not the training."""
        if self._run is None:
            return
        try:
            self._client.log_metric(self._run, name, value, step=step)
        except self._error as error:
            self._give_up(error)

    def close(self, *, failed: bool = False) -> None:
        """Mark the run as finished, or as failed."""
        if self._run is None:
            return
        try:
            self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")
        except self._error as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        print(f"MLflow: {_first_line(error)}; training goes on without it", file=sys.stderr)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
