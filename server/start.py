"""`fedpath server start`: credentials, listener, Flower, one run, records."""

import threading
from pathlib import Path
from typing import Any

from fedpath.core.config import FederationConfig
from fedpath.core.events import EventLog
from fedpath.core.training.alone import initial_model
from fedpath.server.conversation import Conversation
from fedpath.server.flower import FlowerServer
from fedpath.server.folder import RunFolder
from fedpath.server.listener import Listener
from fedpath.server.pipeline import Pipeline
from fedpath.server.provision import load_server_credentials
from fedpath.server.rounds import FederatedRun
from fedpath.server.runs import open_run
from fedpath.server.stages import check_models

EVENTS_FILE = "events.jsonl"


def start(
    config: FederationConfig, state: Path, events: EventLog, stop: threading.Event, *, new: bool = False
) -> tuple[Path, dict[str, Any]]:
    """Serve one run of the federation, the unfinished one or a new one; return its folder and its summary.

    Args:
        config: federation.toml.
        state: the coordinator's folder.
        events: where progress is reported.
        stop: set it to end the run; everything so far is kept.
        new: begin a new run even if the last one is not finished.

    Raises:
        ConfigError: credentials, port, model, encoder or folder do not allow a start, or federation.toml is not that
            of the run that is not finished.
        FederationError: the run could not go on.
    """
    # First: an unknown model or option, or a wrong encoder, is found before any hospital is asked to wait.
    config = check_models(config)
    credentials = load_server_credentials(config.server.credentials, config.federation.sites)
    host, _, port = (config.server.listen or config.server.address).rpartition(":")
    # The port is one coordinator's: no other one goes on with the same run at the same time.
    listener = Listener(host=host, port=int(port), certificate=credentials.certificate, key=credentials.key)
    run = open_run(config, state, new=new)

    def moved(site: str, way: str, done: int, total: int) -> None:
        events.emit("moving", site=site, way=way, done=done, total=total)

    with FlowerServer(
        database=state / "flower.db", public_keys=credentials.public_keys, listener=listener, moved=moved
    ) as server:
        address = f"{host}:{listener.port}"
        events.emit("listening", address=address, run=run.name, sites=config.federation.sites, goes_on=run.begun)
        talk = Conversation(server)
        if config.stage:
            summary = Pipeline(config, run.name, talk, run.folder, events, stop).execute()
        else:
            folder = RunFolder(run.folder, config)
            summary = (
                FederatedRun(config, run.name, initial_model(config), talk, folder, events, stop).execute().summary
            )
        _let_sites_leave(server, stop)
    return run.folder, summary


def _let_sites_leave(server: FlowerServer, stop: threading.Event) -> None:
    """Give the sites' agents a moment to close their connections, so that they end without an error."""
    for _ in range(50):
        if not server.online() or stop.wait(0.1):
            return
