"""The coordinator's own code over simulated hospitals."""

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


def coordinate(
    config: FederationConfig, run: str, folder: Path, talk: Talk, events: EventLog, stop: threading.Event
) -> dict[str, Any]:
    """Do what `fedpath server start` does once its hospitals are there; return the summary.

    Args:
        config: of the federation, after `fedpath.server.stages.check_models`.
        run: its name.
        folder: where its records go; where they are already, the run goes on.
        talk: the conversation with the hospitals.
        events: where progress is reported.
        stop: set it to end the run; everything so far is kept.

    Raises:
        FederationError: too few hospitals answered.
        StoppedError: ``stop`` was set.
    """
    if config.stage:
        return Pipeline(config, run, talk, folder, events, stop).execute()
    model = initial_model(config)
    return FederatedRun(config, run, model, talk, RunFolder(folder, config), events, stop).execute().summary
