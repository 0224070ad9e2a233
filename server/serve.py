"""`fedpath server serve`: work through the queue of a federation, until somebody stops the coordinator.

One thread looks after the queue and the registry (this one), each run that is served has its own, and they share one
Flower server and one listener. The registry is asked twice a second; where it cannot be reached, the runs that are
served go on, and the queue waits.

A coordinator that is killed finds its runs as "running" when it is started again: they go on, before anything else. One
that is stopped by Ctrl-C puts them back into the queue, at its head.
"""

import json
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fedpath.core.config import FederationConfig
from fedpath.core.errors import FedpathError
from fedpath.core.events import EventLog
from fedpath.core.monitoring.children import Mailbox
from fedpath.server.attendance import Attendance
from fedpath.server.conversation import Conversation
from fedpath.server.execute import execute
from fedpath.server.listener import Listener
from fedpath.server.monitoring.watched import Watched
from fedpath.server.provision import load_server_credentials
from fedpath.server.queue import choose
from fedpath.server.registry.database import RegistryAwayError
from fedpath.server.registry.follow import Follower, events_of
from fedpath.server.registry.index import index_folders, read_config, reconcile
from fedpath.server.registry.record import now, write_record
from fedpath.server.registry.registry import Registry
from fedpath.server.registry.requests import check_coordinator, write_folder
from fedpath.server.registry.tables import NEVER, Coordinator, Run
from fedpath.server.runs import RUNS_FOLDER
from fedpath.server.stages import check_models
from fedpath.server.start import CHILDREN, flower_server, let_sites_leave, open_registry

_LOOK_S = 0.5
_LOOP, _QUIET_S = "the queue", 600.0
"""Its name among the signs of life, and how long it may give none: it prepares a run's folder, asks a slow database."""
_BEAT_EVERY = 10
"""Looks between two signs of life."""


@dataclass(slots=True)
class _Served:
    """A run that is served."""

    follower: Follower
    ended: "Future[dict[str, Any]]"


def serve(
    config: FederationConfig,
    state: Path,
    events: EventLog,
    stop: threading.Event,
    *,
    parallel: int,
    watched: Watched | None = None,
) -> None:
    """Serve the queue until ``stop`` is set.

    Args:
        config: federation.toml of the coordinator: the federation, its sites, address, credentials and registry.
        state: the coordinator's folder.
        events: where progress is reported.
        stop: set it to end; runs that are served are put back into the queue, with everything kept.
        parallel: runs that may be served side by side.
        watched: is filled in, for whoever watches.

    Raises:
        ConfigError: credentials, port, registry or folder do not allow a start.
    """
    watched = watched or Watched()
    credentials = load_server_credentials(config.server.credentials, config.federation.sites)
    host, _, port = (config.server.listen or config.server.address).rpartition(":")
    # The port is one coordinator's: no other one serves the same queue at the same time.
    listener = Listener(host=host, port=int(port), certificate=credentials.certificate, key=credentials.key)
    state.mkdir(parents=True, exist_ok=True)
    registry = open_registry(config, state, events)
    with (
        flower_server(state, credentials, listener, events) as server,
        Mailbox(state, CHILDREN, events) as mailbox,
    ):
        watched.listener, watched.server, watched.registry, watched.mailbox = listener, server, registry, mailbox
        talk = Conversation(server)
        name = config.federation.name
        limits = {site: row.max_parallel_runs for site, row in registry.sites(name).items()}
        attendance = Attendance(talk, limits, watched.pulse)
        queue = _Queue(config, state, registry, events, stop, parallel, talk, attendance)
        queue.take_up()
        events.emit("serving", address=f"{host}:{listener.port}", parallel=parallel, waiting=len(registry.queue(name)))
        try:
            queue.work()
        finally:
            queue.end()
        let_sites_leave(talk, attendance, threading.Event())


class _Queue:
    """The queue of one federation and the runs that are served from it."""

    def __init__(
        self,
        config: FederationConfig,
        state: Path,
        registry: Registry,
        events: EventLog,
        stop: threading.Event,
        parallel: int,
        talk: Conversation,
        attendance: Attendance,
    ) -> None:
        self._config, self._state, self._registry, self._events = config, state, registry, events
        self._stop, self._parallel, self._talk, self._attendance = stop, parallel, talk, attendance
        self._served: dict[str, _Served] = {}
        self._untold: list[Follower] = []
        """Of runs that are over, which the registry could not be told."""
        self._away = False

    def take_up(self) -> None:
        """Say that this coordinator is there, and put what another one left running back into the queue."""
        self._beat()
        for run in self._registry.runs(self._config.federation.name, ["running", "stopping"]):
            if not self._is_mine(run):
                continue
            if run.state == "stopping":
                self._registry.move(run, ["stopping"], "stopped", ended=now(), doing="")
            else:
                self._registry.move(run, ["running"], "queued", doing="goes on")
            if (folder := self._folder(run)).is_dir():
                write_record(run, folder)

    def work(self) -> None:
        """Serve runs until it is time to stop."""
        looks = 0
        while not self._stop.wait(_LOOK_S if looks else 0.0):
            looks += 1
            self._attendance.pulse.beat(_LOOP, _QUIET_S)
            for served in list(self._served.values()):
                served.follower.look()
                if served.ended.done():
                    self._end(served, requeue=False)
            self._untold = [follower for follower in self._untold if not self._tell(follower)]
            try:
                if looks % _BEAT_EVERY == 0:
                    self._beat()
                self._begin_next()
            except RegistryAwayError as error:
                self._note_away(error)
            else:
                self._note_away(None)

    def end(self) -> None:
        """Stop the runs that are served; they go on when a coordinator is back."""
        self._attendance.pulse.over(_LOOP)
        for served in self._served.values():
            served.follower.stop.set()
        for served in list(self._served.values()):
            while not served.ended.done():
                served.follower.look()  # somebody may want it stopped for good
                threading.Event().wait(0.05)
            self._end(served, requeue=True)
        gone = self._row()
        gone.seen = NEVER
        try:
            self._registry.keep_coordinator(gone)  # nobody has to wait until it has not been seen for a while
        except RegistryAwayError as error:
            self._note_away(error)

    def _begin_next(self) -> None:
        name = self._config.federation.name
        runs = self._registry.runs(name)
        mine = [run for run in self._registry.queue(name) if self._is_mine(run)]
        sites = self._config.federation.sites
        states = {run.run: run.state for run in runs}
        busy = self._attendance.busy("", sites)
        choice = choose(mine, states, self._served.keys(), self._parallel, busy)
        for run in mine:
            said = choice.waits.get(run.id, run.doing)
            if said != run.doing:
                self._registry.change(run, ["queued"], doing=said)
        if choice.begin is not None:
            self._begin(choice.begin)

    def _begin(self, run: Run) -> None:
        """Serve a run from now on, in a thread."""
        folder = self._folder(run)
        follower = Follower(self._registry, run, folder, self._events, threading.Event())
        try:
            config = self._prepared(run, folder)
        except FedpathError as error:  # of the run's own settings or files: not the coordinator's end
            folder.mkdir(parents=True, exist_ok=True)
            self._say_ended(run, error)
            follower.end(error)
            return
        if not follower.begin(["queued"]):
            return  # somebody took it out of the queue in this moment
        self._events.emit(
            "run_started", run=run.run, label=run.label, model=run.model, done=run.done, rounds=run.rounds
        )
        line, log = self._attendance.line(run.run), events_of(follower, self._events)
        work = partial(execute, config, run.run, folder, line, log, follower.stop)
        self._served[run.run] = _Served(follower, _in_thread(work, run.run))

    def _prepared(self, run: Run, folder: Path) -> FederationConfig:
        """Return a run's settings, with the coordinator's own in their places; its folder is there afterwards."""
        if not folder.is_dir():  # submitted on another machine
            folder.mkdir(parents=True)
            write_folder(run, FederationConfig.model_validate_json(json.dumps(run.config)), folder)
        else:
            reconcile(self._registry, run, folder)
        config = read_config(folder)
        check_coordinator(config, self._row())
        server = config.server.model_copy(
            update={key: getattr(self._config.server, key) for key in ("listen", "credentials", "registry", "parallel")}
        )
        encoder = config.encoder.model_copy(update={"weights": None if run.weights is None else Path(run.weights)})
        return check_models(config.model_copy(update={"server": server, "encoder": encoder}))

    def _end(self, served: _Served, *, requeue: bool) -> None:
        """Note what became of a run whose thread has ended."""
        run, error = served.follower.run, served.ended.exception()
        del self._served[run.run]
        self._attendance.over(run.run)
        self._say_ended(run, error)
        if not served.follower.end(error, requeue=requeue):
            self._untold.append(served.follower)

    def _say_ended(self, run: Run, error: BaseException | None) -> None:
        """Tell the operator; of what should not happen, all of it."""
        if isinstance(error, FedpathError):
            self._events.emit("run_ended", run=run.run, error=error.message, remedy=error.remedy)
        elif error is not None:
            traceback.print_exception(error, file=sys.stderr)
            self._events.emit("run_ended", run=run.run, error=f"{type(error).__name__}: {error}", remedy="see above")

    def _tell(self, follower: Follower) -> bool:
        """Tell the registry what it could not be told when a run ended; its folder knows."""
        try:
            if (there := self._registry.get(follower.run.federation, follower.run.run)) is not None:
                reconcile(self._registry, there, follower.folder)
            index_folders(self._registry, self._state / RUNS_FOLDER)
        except RegistryAwayError:
            return False
        return True

    def _beat(self) -> None:
        self._registry.keep_coordinator(self._row())

    def _row(self) -> Coordinator:
        server = self._config.server
        return Coordinator(
            federation=self._config.federation.name,
            sites=list(self._config.federation.sites),
            address=server.address,
            listen=server.listen,
            credentials=str(server.credentials),
            parallel=self._parallel,
            state_folder=str(self._state.absolute()),
            seen=now(),
        )

    def _folder(self, run: Run) -> Path:
        return self._state / RUNS_FOLDER / run.run

    def _is_mine(self, run: Run) -> bool:
        """Return whether a run is this coordinator's: one without a folder is of whoever takes it."""
        return run.folder is None or Path(run.folder) == self._folder(run).absolute()

    def _note_away(self, error: RegistryAwayError | None) -> None:
        if (error is not None) != self._away:
            self._away = error is not None
            if error is not None:
                self._events.emit("registry_away", reason=error.message)
            else:
                self._events.emit("registry_back")


def _in_thread(work: Callable[[], dict[str, Any]], name: str) -> "Future[dict[str, Any]]":
    """Do ``work`` in a thread that does not keep the process alive: a second Ctrl-C ends it at once."""
    future: Future[dict[str, Any]] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - handed to whoever asks for the result, as it is
            future.set_exception(error)

    threading.Thread(target=run, name=f"run {name}", daemon=True).start()
    return future
