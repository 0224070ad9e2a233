"""What happens at a coordinator, as metrics: a listener of its events."""

import threading
from typing import Any

from fedpath.core.events import Event
from fedpath.core.monitoring.metrics import Metrics
from fedpath.core.monitoring.pulse import Pulse
from fedpath.server.monitoring.rows import REFUSED_CAUSES

_RUNS_KEPT = 20
"""Runs whose series stay; a queue may be served for months."""
_COMBINING_S = 4 * 3600.0
"""How long combining and keeping a model may take without a sign of life."""


class _Round:
    """The open round of a run."""

    def __init__(self, at: float) -> None:
        self.began = self.phase_began = at
        self.phase = "collect"
        self.quorum = 0
        self.counted: set[str] = set()


class Heard:
    """Counts what is told.

    Args:
        metrics: `fedpath.server.monitoring.rows`.
        pulse: of the coordinator: is told of work that takes long.
    """

    def __init__(self, metrics: Metrics, pulse: Pulse) -> None:
        self._metrics, self._pulse, self._lock = metrics, pulse, threading.Lock()
        self._open: dict[str, _Round] = {}
        self._runs: list[str] = []
        """Those that have series, the oldest first."""
        self._pieces: dict[float, float] = {}
        self.away: str | None = None
        """Why the registry does not answer; None while it does."""

    def __call__(self, event: Event) -> None:
        """Take in an event. Events of one run come in order; several runs' threads may come at the same time."""
        with self._lock:
            self._of_coordinator(event)
            run = event.values.get("run")
            if isinstance(run, str):
                self._of_run(run, event)

    def _of_coordinator(self, event: Event) -> None:
        metrics, values = self._metrics, event.values
        match event.kind:
            case "registry_away":
                self.away = values["reason"]
            case "registry_back":
                self.away = None
            case "site_refused" if "round" not in values:
                metrics.count("fedpath_site_kept_out_total", site=values["site"])
            case "checkpoint_damaged" | "journal_damaged":
                metrics.count("fedpath_checkpoint_damaged_total")
            case "combiner_replaced":
                metrics.count("fedpath_combiners_replaced_total")
            case "cluster_lost":
                metrics.count("fedpath_clusters_lost_total")
            case "combiner":
                self._of_combiner(values)

    def _of_combiner(self, values: dict[str, Any]) -> None:
        """Take in what the process that talks to Ray tells: sums since it began."""
        pid, pieces = values.get("pid"), values.get("pieces")
        if isinstance(pid, int) and isinstance(pieces, int | float) and pieces > self._pieces.get(pid, 0):
            self._metrics.count("fedpath_combiner_pieces_total", pieces - self._pieces.get(pid, 0))
            self._pieces[pid] = pieces
        if isinstance(memory := values.get("memory_bytes"), int | float):
            self._metrics.set("fedpath_combiner_memory_bytes", memory)

    def _of_run(self, run: str, event: Event) -> None:
        metrics, values = self._metrics, event.values
        match event.kind:
            case "run_taken_up":
                self._know(run)
                metrics.set("fedpath_run_active", 1, run=run)
                metrics.set("fedpath_rounds_planned", values["rounds"], run=run)
            case "run_over":
                self._end_run(run, values["outcome"])
            case "stage_started":
                metrics.set("fedpath_run_stage", values["number"], run=run)
            case "round_started":
                self._begin_round(run, event)
            case "site_answered" | "site_refused" | "site_lost" | "site_late" if "round" in values:
                self._take_reply(run, event)
            case "quorum_missing":
                missing = max(0, values["needed"] - values["counted"])
                metrics.set("fedpath_round_quorum_missing", missing, run=run)
            case "combining" | "keeping":
                self._pulse.beat(run, _COMBINING_S)
                self._turn(run, event.at, {"combining": "aggregate", "keeping": "keep"}[event.kind])
            case "checkpoint_kept":
                metrics.set("fedpath_checkpoint_last_success_timestamp_seconds", event.at, run=run)
            case "judged":
                self._figures(run, "validation", values)
            case "tested":
                self._figures(run, "test", values)
            case "round_finished":
                metrics.observe("fedpath_aggregation_duration_seconds", values["aggregation_s"])
                self._figures(run, "train", {"loss": values["training_loss"]})
                self._end_round(run, event.at, "finished")

    def _know(self, run: str) -> None:
        """Keep the series of the latest runs only."""
        if run in self._runs:
            self._runs.remove(run)
        self._runs.append(run)
        for old in self._runs[:-_RUNS_KEPT]:
            if old not in self._open:
                self._runs.remove(old)
                self._metrics.forget_run(old)

    def _begin_round(self, run: str, event: Event) -> None:
        metrics, values = self._metrics, event.values
        if run not in self._runs:
            self._know(run)
        self._open[run] = open_ = _Round(event.at)
        open_.quorum = values["quorum"]
        for outcome in ("finished", "failed", "stopped"):
            metrics.count("fedpath_rounds_total", 0, run=run, outcome=outcome)
        for name, value in {
            "fedpath_round": values["round"],
            "fedpath_rounds_planned": values["rounds"],
            "fedpath_round_open": 1,
            "fedpath_round_start_timestamp_seconds": event.at,
            "fedpath_round_deadline_seconds": values["deadline_s"],
            "fedpath_round_updates": 0,
            "fedpath_round_quorum": values["quorum"],
            "fedpath_round_quorum_missing": 0,
        }.items():
            metrics.set(name, value, run=run)

    def _take_reply(self, run: str, event: Event) -> None:
        metrics, values = self._metrics, event.values
        site, outcome = values["site"], event.kind.removeprefix("site_")
        metrics.count("fedpath_site_replies_total", site=site, outcome=outcome)
        if outcome == "refused":
            cause = values.get("cause")
            metrics.count("fedpath_update_rejected_total", reason=cause if cause in REFUSED_CAUSES else "other")
        if outcome == "answered" and (open_ := self._open.get(run)) is not None:
            open_.counted.add(site)
            metrics.set("fedpath_round_updates", len(open_.counted), run=run)
            if len(open_.counted) >= open_.quorum:
                metrics.set("fedpath_round_quorum_missing", 0, run=run)

    def _turn(self, run: str, at: float, phase: str) -> None:
        """One phase of the round is over, the next one begins."""
        if (open_ := self._open.get(run)) is not None:
            seconds = max(0.0, at - open_.phase_began)
            self._metrics.observe("fedpath_round_duration_seconds", seconds, run=run, phase=open_.phase)
            open_.phase, open_.phase_began = phase, at
            self._metrics.set("fedpath_round_quorum_missing", 0, run=run)

    def _end_round(self, run: str, at: float, outcome: str) -> None:
        if (open_ := self._open.get(run)) is None:
            return
        if outcome == "finished":
            self._turn(run, at, "")
            seconds = max(0.0, at - open_.began)
            self._metrics.observe("fedpath_round_duration_seconds", seconds, run=run, phase="whole")
        del self._open[run]
        self._metrics.set("fedpath_round_open", 0, run=run)
        self._metrics.count("fedpath_rounds_total", run=run, outcome=outcome)

    def _end_run(self, run: str, outcome: str) -> None:
        self._end_round(run, 0.0, outcome if outcome in ("failed", "stopped") else "stopped")
        if run in self._runs:  # one whose settings were refused never began
            self._metrics.set("fedpath_run_active", 0, run=run)
            self._metrics.set("fedpath_round_quorum_missing", 0, run=run)
        self._metrics.count("fedpath_runs_total", outcome=outcome)
        self._pulse.over(run)

    def _figures(self, run: str, split: str, values: dict[str, Any]) -> None:
        for metric in ("auc", "loss"):
            if (value := values.get(metric)) is not None:
                self._metrics.set("fedpath_model_metric", value, run=run, metric=metric, split=split)
