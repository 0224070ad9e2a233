"""`fedpath server start`: credentials, listener, Flower, one run, records."""

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedpath.core.config import FederationConfig
from fedpath.core.errors import ConfigError
from fedpath.core.events import EventLog
from fedpath.core.training.alone import initial_model
from fedpath.server.conversation import Conversation
from fedpath.server.flower import FlowerServer
from fedpath.server.listener import Listener
from fedpath.server.provision import load_server_credentials
from fedpath.server.records import RunFolder
from fedpath.server.rounds import FederatedRun

EVENTS_FILE = "events.jsonl"
RUNS_FOLDER = "runs"


def start(
    config: FederationConfig, state: Path, events: EventLog, stop: threading.Event
) -> tuple[Path, dict[str, Any]]:
    """Serve one run of the federation; return its folder and its summary.

    Args:
        config: federation.toml.
        state: the coordinator's folder.
        events: where progress is reported.
        stop: set it to end the run; everything so far is kept.

    Raises:
        ConfigError: credentials, port, model or folder do not allow a start.
        FederationError: the run could not go on.
    """
    # Built first: an unknown model or option is found before any hospital is asked to wait.
    model = initial_model(config)
    credentials = load_server_credentials(config.server.credentials, config.federation.sites)
    host, _, port = (config.server.listen or config.server.address).rpartition(":")
    listener = Listener(host=host, port=int(port), certificate=credentials.certificate, key=credentials.key)
    run, folder = _new_run(state)
    with FlowerServer(database=state / "flower.db", public_keys=credentials.public_keys, listener=listener) as server:
        events.emit("listening", address=f"{host}:{listener.port}", run=run, sites=config.federation.sites)
        federated = FederatedRun(config, run, model, Conversation(server), RunFolder(folder, config), events, stop)
        summary = federated.execute()
        _let_sites_leave(server, stop)
    return folder, summary


def _new_run(state: Path) -> tuple[str, Path]:
    """Make the folder of a new run, named by the time it starts."""
    base = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    for attempt in range(1, 100):
        run = base if attempt == 1 else f"{base}-{attempt}"
        folder = state / RUNS_FOLDER / run
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(
                f"{state}: cannot be written to: {error.strerror}", remedy="name another folder with --dir"
            ) from None
        return run, folder
    raise ConfigError(f"{state}: too many runs started at {base}", remedy="wait a second")


def _let_sites_leave(server: FlowerServer, stop: threading.Event) -> None:
    """Give the sites' agents a moment to close their connections, so that they end without an error."""
    for _ in range(50):
        if not server.online() or stop.wait(0.1):
            return
