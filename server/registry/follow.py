"""A run that is served, and its row: what it does is written down, and a request to stop is heard.

The run does not depend on the registry: while that cannot be reached, the run goes on, and what was missed is written
when it is back.
"""

import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fedpath.core.errors import FedpathError, StoppedError
from fedpath.core.events import Event, EventLog
from fedpath.server.registry.database import RegistryAwayError
from fedpath.server.registry.index import Indexer, reconcile, take_in
from fedpath.server.registry.record import now, write_record
from fedpath.server.registry.registry import Registry
from fedpath.server.registry.tables import Run, RunState

EVENTS_FILE = "events.jsonl"
_LOOK_S = 0.5


@dataclass(slots=True)
class Follower:
    """Of one run.

    The registry is used by whoever calls the methods, in one thread; `doing` is set by the run's own.
    """

    registry: Registry
    run: Run
    folder: Path
    events: EventLog
    """Of the coordinator."""
    stop: threading.Event
    """Of the run; set when somebody asks for it to stop."""
    doing: str = ""
    stops: bool = False
    """Whoever asked for it to stop did so through the registry."""
    away: bool = False
    """The registry could not be reached at the last look."""
    _indexer: Indexer = field(init=False)

    def __post_init__(self) -> None:
        self._indexer = Indexer(self.registry, self.run, self.folder)

    def begin(self, known: Collection[RunState] = ()) -> bool:
        """Say that the run is served from now on; False where it is in none of the states ``known`` any more."""
        values: dict[str, Any] = {"started": self.run.started or now(), "ended": None, "doing": "starts"}
        values |= {"error": "", "remedy": "", "exit_code": None, "folder": str(self.folder.absolute())}
        if not self.registry.move(self.run, known, "running", **values):
            return False
        write_record(self.run, self.folder)
        self.events.emit("run_taken_up", run=self.run.run, rounds=self.run.rounds, done=self.run.done)
        return True

    def look(self) -> None:
        """Write what is new, and see whether the run is to stop."""
        try:
            there = self.registry.get(self.run.federation, self.run.run)
            if there is None or there.revision < self.run.revision:
                self._restore(there)
            self._indexer.look()
            if self.doing and self.doing != self.run.doing:
                self.registry.change(self.run, ["running", "stopping"], doing=self.doing)
        except RegistryAwayError as error:
            self._note_away(error)
            return
        self._note_away(None)
        if there is not None and there.state == "stopping" and not self.stops:
            self.run.state, self.run.revision, self.stops = there.state, there.revision, True
            self.stop.set()

    def _restore(self, there: Run | None) -> None:
        """Put the run into a database that was emptied, or replaced by an older copy, meanwhile."""
        write_record(self.run, self.folder)
        if there is None:
            there = take_in(self.registry, self.folder)
        else:
            reconcile(self.registry, there, self.folder)
        self.run = there
        self._indexer = Indexer(self.registry, there, self.folder)

    def end(self, error: BaseException | None, *, requeue: bool = False) -> bool:
        """Say what became of the run; False where the registry could not be told (the run's folder was).

        Args:
            error: how it ended; None where it is finished.
            requeue: it was stopped with its coordinator, and goes on when that is back.
        """
        self.look()
        run = self.run
        state, values = _became(error, requeue=requeue and not self.stops)
        self.events.emit("run_over", run=run.run, outcome=state)
        try:
            self.registry.move(run, (), state, **values)
        except RegistryAwayError as away:
            self._note_away(away)
            for name, value in values.items():
                setattr(run, name, value)
            run.state, run.revision = state, run.revision + 1
            write_record(run, self.folder)
            return False
        write_record(run, self.folder)
        return True

    def _note_away(self, error: RegistryAwayError | None) -> None:
        if (error is not None) != self.away:
            self.away = error is not None
            if error is not None:
                self.events.emit("registry_away", reason=error.message)
            else:
                self.events.emit("registry_back")


def _became(error: BaseException | None, *, requeue: bool) -> tuple[RunState, dict[str, Any]]:
    """Return the state of a run that is over, and what goes with it."""
    values: dict[str, Any] = {"ended": now(), "doing": "", "error": "", "remedy": ""}
    match error:
        case None:
            return "finished", values | {"exit_code": 0}
        case StoppedError() | KeyboardInterrupt() if requeue:
            return "queued", values | {
                "ended": None,
                "exit_code": None,
                "doing": "goes on when its coordinator is back",
            }
        case StoppedError() | KeyboardInterrupt():
            return "stopped", values | {"exit_code": StoppedError.exit_code}
        case FedpathError():
            said = {"error": error.message, "remedy": error.remedy, "exit_code": error.exit_code}
            return "failed", values | said
        case _:
            text = f"{type(error).__name__}: {error}"[:2000]
            remedy = "the coordinator's terminal shows more; `fedpath run resume` tries again"
            return "failed", values | {"error": text, "remedy": remedy, "exit_code": 1}


class Following:
    """Follows a run in a thread of its own; use as a context manager around what serves it."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="registry", daemon=True)

    def __enter__(self) -> Self:
        self._follower.begin()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._follower.end(error)

    def _work(self) -> None:
        while not self._over.wait(_LOOK_S):
            self._follower.look()


def events_of(follower: Follower, parent: EventLog) -> EventLog:
    """Return the log of a run's events: in its folder, and with its name in the coordinator's log."""

    def heard(event: Event) -> None:
        if said := in_short(event):
            follower.doing = said
        parent.emit(event.kind, **{"run": follower.run.run} | event.values)

    return EventLog(follower.folder / EVENTS_FILE, heard)


def in_short(event: Event) -> str | None:
    """Return what a run is at, or waits for, in a few words; None where an event changes nothing about that."""
    values = event.values
    match event.kind:
        case "waiting":
            return (
                f"{len(values['online'])} of {values['needed']} sites are here; missing: {', '.join(values['missing'])}"
            )
        case "stage_started":
            return f"stage {values['number']} of {values['of']}: {values['stage']}"
        case "encoding":
            return f"encoding slides at {', '.join(values['sites'])}"
        case "round_started":
            return f"round {values['round']} of {values['rounds']} at {', '.join(values['sites'])}"
        case "quorum_missing":
            counted = f"{values['counted']} of {values['needed']} updates"
            return f"round {values['round']} has {counted}; waits for {', '.join(values['missing'])}"
        case "evaluated":
            return f"the sites evaluate ({values['split']})"
        case _:
            return None
