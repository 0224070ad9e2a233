"""What goes on now, kept from the coordinator's events: hospitals, rounds that are open, files that are on their way.

What is over is not kept here: the registry has it. So memory is bounded by the hospitals and the runs that are served.
Names and reasons come from hospitals and are kept as they came, cut to a length; the page shows them as text.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fedpath.core.events import Event
from fedpath.server.registry.follow import in_short

_LONGEST = 500
_MOST_RUNS = 16
"""That are remembered at a time: more than a coordinator serves side by side."""
_OVER = {"site_answered": "answered", "site_refused": "refused", "site_lost": "lost", "site_late": "late"}


@dataclass(slots=True)
class SiteNow:
    """A hospital."""

    state: str = "unknown"
    """unknown, here, working, answered, refused, lost, late, evaluating, encoding or away."""
    says: str = ""
    """More of it, in words: a reason, or what it is at."""
    run: str = ""
    since: float = 0.0
    heard: float | None = None
    """When it last answered or moved bytes; seconds since the epoch."""
    moving: dict[str, Any] | None = None
    """A file on its way: "way" (fetching or sending, as the hospital sees it), "done" and "total" bytes, "at"."""


@dataclass(slots=True)
class PartNow:
    """A hospital's part in a round that is open."""

    began: float
    outcome: str = "working"
    ended: float | None = None
    reason: str = ""
    fetched: float | None = None
    """When the model was there, where it travelled as a file."""
    sending: float | None = None
    """When the update began to travel, where it does as a file."""
    training_loss: float | None = None
    validation_auc: float | None = None
    sent_bytes: int = 0
    received_bytes: int = 0


@dataclass(slots=True)
class RunNow:
    """A run that is served."""

    doing: str = "begins"
    stage: str = ""
    round: int = 0
    rounds: int = 0
    began: float | None = None
    ended: float | None = None
    deadline_s: float | None = None
    parts: dict[str, PartNow] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    """Hospitals that are waited for."""


class Live:
    """An event listener; thread-safe.

    Args:
        sites: of the federation.
    """

    def __init__(self, sites: Sequence[str]) -> None:
        self._lock = threading.Lock()
        self._sites = {site: SiteNow() for site in sites}
        self._runs: dict[str, RunNow] = {}
        self._about: dict[str, Any] = {"address": None, "registry": None}
        self.version = 0
        """Counts what has changed."""

    def __call__(self, event: Event) -> None:
        """Take an event in."""
        with self._lock:
            self._take(event)
            self.version += 1

    @property
    def is_listening(self) -> bool:
        """Whether the coordinator has said where it listens."""
        return self._about["address"] is not None

    def sections(self) -> dict[str, Any]:
        """Return what the page shows of it: about, sites and runs."""
        with self._lock:
            return {
                "about": dict(self._about),
                "sites": {name: asdict(site) for name, site in self._sites.items()},
                "live": {name: asdict(run) for name, run in self._runs.items()},
            }

    def _take(self, event: Event) -> None:
        values = event.values
        run = self._run(str(values["run"])) if values.get("run") else None
        if run is not None and (said := in_short(event)) is not None:
            run.doing = said[:_LONGEST]
        if (take := _TAKES.get(event.kind)) is not None:
            take(self, event, run)

    def _run(self, name: str) -> RunNow:
        if name not in self._runs:
            while len(self._runs) >= _MOST_RUNS:
                del self._runs[next(iter(self._runs))]
            self._runs[name] = RunNow()
        return self._runs[name]

    def _set(self, site: str, event: Event, state: str, says: str = "", *, heard: bool = False) -> None:
        """Say what a hospital is at."""
        if (known := self._sites.get(site)) is None:
            return
        known.state, known.says, known.since = state, str(says)[:_LONGEST], event.at
        known.run = str(event.values.get("run", ""))
        if heard:
            known.heard = event.at
        if state not in ("working", "encoding"):
            known.moving = None

    # --- events of the coordinator ------------------------------------------------------------------------------------

    def _listening(self, event: Event, _run: RunNow | None) -> None:
        self._about["address"] = event.values.get("address")

    def _registry_away(self, event: Event, _run: RunNow | None) -> None:
        self._about["registry"] = str(event.values.get("reason", ""))[:_LONGEST]

    def _registry_back(self, _event: Event, _run: RunNow | None) -> None:
        self._about["registry"] = None

    def _moving(self, event: Event, _run: RunNow | None) -> None:
        values, name = event.values, str(event.values.get("site"))
        site = self._sites.get(name)
        if site is None:
            return
        site.heard = event.at
        way, done, total = str(values.get("way", "")), int(values.get("done", 0)), int(values.get("total", 0))
        site.moving = None if done >= total else {"way": way, "done": done, "total": total, "at": event.at}
        part = self._runs[site.run].parts.get(name) if site.run in self._runs else None
        if part is not None and part.outcome == "working":
            if way == "fetching":
                part.fetched = event.at
            elif part.sending is None:
                part.sending = event.at

    # --- events of a run ----------------------------------------------------------------------------------------------

    def _run_ended(self, event: Event, _run: RunNow | None) -> None:
        name = str(event.values.get("run", ""))
        self._runs.pop(name, None)
        for site in self._sites.values():
            if site.run == name and site.state not in ("away", "refused"):
                site.state, site.says, site.run = "here" if site.heard else "unknown", "", ""

    def _waiting(self, event: Event, run: RunNow | None) -> None:
        online, missing = event.values.get("online", ()), list(event.values.get("missing", ()))
        if run is not None:
            run.missing = missing
        for name in online:
            site = self._sites.get(name)
            if site is not None and site.state in ("unknown", "away", "lost"):
                self._set(name, event, "here", heard=True)
        for name in missing:
            site = self._sites.get(name)
            if site is not None and site.run in ("", event.values.get("run")) and site.state != "refused":
                self._set(name, event, "away")

    def _site_accepted(self, event: Event, _run: RunNow | None) -> None:
        self._set(str(event.values.get("site")), event, "here", heard=True)

    def _stage_started(self, event: Event, run: RunNow | None) -> None:
        if run is not None:
            run.stage, run.parts, run.round, run.began, run.ended = str(event.values.get("stage")), {}, 0, None, None

    def _round_started(self, event: Event, run: RunNow | None) -> None:
        values, sites = event.values, list(event.values.get("sites", ()))
        if run is not None:
            run.round, run.rounds = int(values.get("round", 0)), int(values.get("rounds", 0))
            run.began, run.ended, run.deadline_s = event.at, None, values.get("deadline_s")
            run.parts, run.missing = {site: PartNow(began=event.at) for site in sites}, []
        for site in sites:
            self._set(site, event, "working", f"round {values.get('round')}")

    def _part_over(self, event: Event, run: RunNow | None) -> None:
        values, outcome = event.values, _OVER[event.kind]
        site, reason = str(values.get("site")), str(values.get("reason", ""))[:_LONGEST]
        answered = outcome in ("answered", "refused")
        self._set(site, event, outcome, reason or f"round {values.get('round')}", heard=answered)
        if run is None or "round" not in values or site not in self._sites:
            return
        part = run.parts.setdefault(site, PartNow(began=run.began or event.at))
        part.outcome, part.ended, part.reason = outcome, event.at, reason
        part.training_loss, part.validation_auc = values.get("training_loss"), values.get("validation_auc")
        part.sent_bytes, part.received_bytes = values.get("sent_bytes", 0), values.get("received_bytes", 0)

    def _quorum_missing(self, event: Event, run: RunNow | None) -> None:
        if run is not None:
            run.missing = list(event.values.get("missing", ()))

    def _round_finished(self, event: Event, run: RunNow | None) -> None:
        if run is not None:
            run.ended, run.missing = event.at, []
            run.doing = f"round {event.values.get('round')} is over"

    def _encoding(self, event: Event, _run: RunNow | None) -> None:
        for site in event.values.get("sites", ()):
            self._set(site, event, "encoding", "encodes its slides again")

    def _encoded(self, event: Event, _run: RunNow | None) -> None:
        self._set(str(event.values.get("site")), event, "answered", "slides are encoded", heard=True)

    def _evaluated(self, event: Event, _run: RunNow | None) -> None:
        self._set(str(event.values.get("site")), event, "answered", "has evaluated", heard=True)

    def _evaluation_missing(self, event: Event, _run: RunNow | None) -> None:
        self._set(str(event.values.get("site")), event, "lost", str(event.values.get("reason", "")))


_TAKES: dict[str, Callable[[Live, Event, RunNow | None], None]] = {
    "listening": Live._listening,
    "serving": Live._listening,
    "registry_away": Live._registry_away,
    "registry_back": Live._registry_back,
    "moving": Live._moving,
    "run_finished": Live._run_ended,
    "run_ended": Live._run_ended,
    "waiting": Live._waiting,
    "site_accepted": Live._site_accepted,
    "stage_started": Live._stage_started,
    "round_started": Live._round_started,
    "quorum_missing": Live._quorum_missing,
    "round_finished": Live._round_finished,
    "encoding": Live._encoding,
    "encoded": Live._encoded,
    "evaluated": Live._evaluated,
    "evaluation_missing": Live._evaluation_missing,
    **dict.fromkeys(_OVER, Live._part_over),
}
"""What takes each kind of event in; other kinds change nothing that is shown."""
