"""Serve one run over a conversation with the sites, whoever asked for it."""

import threading
from pathlib import Path
from typing import Any

from fedpath.core.config import FederationConfig
from fedpath.core.events import EventLog
from fedpath.core.training.alone import initial_model
from fedpath.server.folder import RunFolder
from fedpath.server.pipeline import Pipeline
from fedpath.server.rounds import FederatedRun
from fedpath.server.talk import Talk


def execute(
    config: FederationConfig, run: str, folder: Path, talk: Talk, events: EventLog, stop: threading.Event
) -> dict[str, Any]:
    """Serve a run, or what is left of it; return its summary.

    Args:
        config: of the run, after `fedpath.server.stages.check_models`.
        run: its name.
        folder: of the run.
        talk: with the sites that may take part.
        events: where progress is reported.
        stop: set it to end the run; everything so far is kept.

    Raises:
        FederationError: the run could not go on.
        StoppedError: ``stop`` was set.
        DataError: the folder does not hold what its records name.
    """
    if config.stage:
        return Pipeline(config, run, talk, folder, events, stop).execute()
    model = initial_model(config)
    return FederatedRun(config, run, model, talk, RunFolder(folder, config), events, stop).execute().summary
