"""`fedpath server start`: credentials, listener, Flower, one run, records, and its row in the registry."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedpath.core.config import FederationConfig
from fedpath.core.events import EventLog
from fedpath.core.monitoring.children import Mailbox
from fedpath.server.attendance import Attendance
from fedpath.server.conversation import Conversation
from fedpath.server.database import explaining
from fedpath.server.execute import execute
from fedpath.server.flower import FlowerServer
from fedpath.server.listener import Listener
from fedpath.server.monitoring.watched import Watched
from fedpath.server.provision import ServerCredentials, load_server_credentials
from fedpath.server.registry.database import point_to
from fedpath.server.registry.follow import EVENTS_FILE, Follower, Following, events_of
from fedpath.server.registry.index import index_folders, new_row
from fedpath.server.registry.registry import Registry
from fedpath.server.registry.tables import Run
from fedpath.server.runs import RUNS_FOLDER, OpenRun, open_run
from fedpath.server.stages import check_models

__all__ = ["EVENTS_FILE", "start"]

CHILDREN = "children"
"""Name of the socket on which child processes tell what they know, in the coordinator's folder."""


def start(
    config: FederationConfig,
    state: Path,
    events: EventLog,
    stop: threading.Event,
    *,
    new: bool = False,
    watched: Watched | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Serve one run of the federation, the unfinished one or a new one; return its folder and its summary.

    Args:
        config: federation.toml.
        state: the coordinator's folder.
        events: where progress is reported.
        stop: set it to end the run; everything so far is kept.
        new: begin a new run even if the last one is not finished.
        watched: is filled in, for whoever watches.

    Raises:
        ConfigError: credentials, port, model, encoder, registry or folder do not allow a start, or federation.toml is
            not that of the run that is not finished.
        FederationError: the run could not go on.
        OSError: the disk is full, or nobody may write there.
        DataError: what is in the folder is damaged.
    """
    watched = watched or Watched()
    # First: an unknown model or option, or a wrong encoder, is found before any hospital is asked to wait.
    config = check_models(config)
    credentials = load_server_credentials(config.server.credentials, config.federation.sites)
    host, _, port = (config.server.listen or config.server.address).rpartition(":")
    # The port is one coordinator's: no other one goes on with the same run at the same time.
    listener = Listener(host=host, port=int(port), certificate=credentials.certificate, key=credentials.key)
    run = open_run(config, state, new=new)
    registry = open_registry(config, state, events)
    with (
        flower_server(state, credentials, listener, events) as server,
        Mailbox(state, CHILDREN, events) as mailbox,
    ):
        watched.listener, watched.server, watched.registry, watched.mailbox = listener, server, registry, mailbox
        address = f"{host}:{listener.port}"
        events.emit("listening", address=address, run=run.name, sites=config.federation.sites, goes_on=run.begun)
        talk = Conversation(server)
        attendance = Attendance(talk, pulse=watched.pulse)
        follower = Follower(registry, _row(registry, config, run), run.folder, events, stop)
        with Following(follower):
            line, log = attendance.line(run.name), events_of(follower, events)
            summary = execute(config, run.name, run.folder, line, log, stop)
        attendance.over(run.name)
        let_sites_leave(talk, attendance, stop)
    return run.folder, summary


@contextmanager
def flower_server(
    state: Path, credentials: ServerCredentials, listener: Listener, events: EventLog
) -> Iterator[FlowerServer]:
    """Serve the hospitals from the coordinator's folder.

    Args:
        state: the folder.
        credentials: of the coordinator, with the hospitals' keys.
        listener: where to serve.
        events: where large arrays that are on their way are reported.

    Raises:
        OSError: the disk is full, or nobody may write there.
        DataError: Flower's state is damaged.
    """

    def moved(site: str, way: str, done: int, total: int) -> None:
        events.emit("moving", site=site, way=way, done=done, total=total)

    database = state / "flower.db"
    with (
        explaining(database),
        FlowerServer(database=database, public_keys=credentials.public_keys, listener=listener, moved=moved) as server,
    ):
        yield server


def open_registry(config: FederationConfig, state: Path, events: EventLog) -> Registry:
    """Open the coordinator's registry and take in what it does not know of the runs that are there."""
    url = config.server.registry
    registry = Registry.open(state, None if url is None else url.get_secret_value(), make=True)
    if registry.upgraded_from is not None:
        events.emit("registry_upgraded", where=registry.where, version=registry.upgraded_from)
    point_to(registry.url, state)
    for trouble in index_folders(registry, state / RUNS_FOLDER):
        events.emit("not_indexed", reason=trouble)
    return registry


def _row(registry: Registry, config: FederationConfig, run: OpenRun) -> Run:
    row = registry.get(config.federation.name, run.name)
    if row is None:
        row = new_row(config, run.name, folder=run.folder)
        registry.add(row)
    return row


def let_sites_leave(talk: Conversation, attendance: Attendance, stop: threading.Event) -> None:
    """Give the agents that do not stay a moment to close their connections, so that they end without an error."""
    for _ in range(50):
        if all(attendance.stays(site) for site in talk.online()) or stop.wait(0.1):
            return
