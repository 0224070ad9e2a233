"""What happens at a hospital's agent, as metrics: a listener of its events."""

import threading
from typing import Any

from fedpath.client.agent.flower import AGENT
from fedpath.client.monitoring.causes import DATA_CAUSES, ORDER_CAUSES
from fedpath.client.monitoring.rows import ORDERS, PHASES, WORK
from fedpath.client.policy import CAUSES, CODE_CAUSES
from fedpath.core.events import Event
from fedpath.core.monitoring.children import KINDS
from fedpath.core.monitoring.metrics import Metrics
from fedpath.core.monitoring.pulse import Pulse

_WORKING_S = 4 * 3600.0
"""How long work may go on without a sign of life: one step of the largest model, one slide of the largest scanner."""


class Heard:
    """Counts what is told.

    Args:
        metrics: `fedpath.client.monitoring.rows`.
        pulse: of the agent: what happens while it works is a sign of life.
    """

    def __init__(self, metrics: Metrics, pulse: Pulse) -> None:
        self._metrics, self._pulse, self._lock = metrics, pulse, threading.Lock()
        self._phase, self._since = "starting", 0.0
        self._samples = 0
        """Slides that the training which is going on has seen."""
        self._peak = 0.0
        """Most bytes that one of DeepSpeed's processes held."""
        self._told: dict[tuple[object, str], float] = {}
        """Sums that child processes told, by process and name."""
        self.away: str | None = "it has not connected yet"
        """Why it is not connected; None while it is."""
        self.gpu_peaks: dict[str, float] = {}
        """Most bytes that a child process held of a GPU, by its number."""
        self._show_phase()

    def __call__(self, event: Event) -> None:
        """Take in an event."""
        with self._lock:
            if event.kind in KINDS:
                self._of_child(event)
                return
            self._take_in(event)
            if self._phase in WORK:
                self._pulse.beat(AGENT, _WORKING_S)

    def _take_in(self, event: Event) -> None:
        metrics, values = self._metrics, event.values
        match event.kind:
            case "phase":
                self._turn(values["phase"], event.at)
            case "joined" | "coordinator_back":
                self.away = None
                metrics.set("fedpath_client_connected", 1)
            case "coordinator_away":
                self.away = values["reason"]
                metrics.set("fedpath_client_connected", 0)
            case "order":
                self._take_order(values)
            case "sent":
                metrics.count("fedpath_client_transfer_bytes_total", values["bytes"], direction="sent")
            case "step":
                done = int(values["done"])
                metrics.count("fedpath_client_samples_total", done - self._samples if done > self._samples else done)
                self._samples = 0 if done == values["total"] else done
            case "trained":
                self._samples = 0
                metrics.set("fedpath_client_training_loss", values["loss"])
            case _:
                self._take_trouble(event)

    def _take_trouble(self, event: Event) -> None:
        metrics, values = self._metrics, event.values
        match event.kind:
            case "order_refused":
                reason = _known(values["reason"], CAUSES)
                metrics.count("fedpath_client_orders_refused_total", reason=reason)
                if reason in CODE_CAUSES:
                    metrics.count("fedpath_client_code_denied_total", reason=reason)
            case "order_failed" | "training_failed":
                metrics.count("fedpath_client_orders_failed_total", reason=_known(values["cause"], ORDER_CAUSES))
                if (about := values.get("about")) is not None:
                    metrics.count("fedpath_client_data_errors_total", reason=_known(about, DATA_CAUSES))
            case "patches_read":
                metrics.count("fedpath_client_data_errors_total", values["unreadable"], reason="patch")
            case "out_of_memory":
                self._samples = 0
                metrics.count("fedpath_client_oom_total")
            case "training_lost":
                self._samples = 0
                metrics.count("fedpath_client_training_lost_total")
            case "audit_failed":
                metrics.count("fedpath_audit_write_errors_total")

    def _take_order(self, values: dict[str, Any]) -> None:
        metrics = self._metrics
        if values["order"] in ORDERS:
            metrics.count("fedpath_client_orders_total", order=values["order"])
        metrics.count("fedpath_client_transfer_bytes_total", values["bytes"], direction="received")
        if values["order"] == "train":
            self._samples = 0
            metrics.set("fedpath_client_round", values["round"])

    def _turn(self, phase: str, at: float) -> None:
        if self._phase in WORK:
            seconds = max(0.0, at - self._since)
            self._metrics.observe("fedpath_client_phase_duration_seconds", seconds, phase=self._phase)
        self._phase, self._since = phase, at
        self._show_phase()

    def _show_phase(self) -> None:
        for phase in PHASES:
            self._metrics.set("fedpath_client_phase", float(phase == self._phase), phase=phase)

    def _of_child(self, event: Event) -> None:
        """Take in what a child process tells: sums since it began, and the most that it held."""
        values = event.values
        match event.kind:
            case "trainer":
                self._peak = max(self._peak, _number(values, "memory_bytes"))
                self._metrics.set("fedpath_client_trainer_memory_bytes", self._peak)
                if "gpu" in values:
                    gpu = str(int(_number(values, "gpu")))
                    self.gpu_peaks[gpu] = max(self.gpu_peaks.get(gpu, 0.0), _number(values, "gpu_memory_bytes"))
            case "encoder":
                if (more := self._more(values, "slides")) > 0:
                    self._metrics.count("fedpath_client_slides_encoded_total", more)
                if (more := self._more(values, "bad_slides")) > 0:
                    self._metrics.count("fedpath_client_data_errors_total", more, reason="slide")

    def _more(self, values: dict[str, Any], name: str) -> float:
        """Return how much a child's sum has grown."""
        key, now = (values.get("pid"), name), _number(values, name)
        before = self._told.get(key, 0.0)
        self._told[key] = now
        return now - before if now >= before else now


def _known(word: object, words: tuple[str, ...]) -> str:
    """Return a label's value, which is one of a fixed set whatever an event holds."""
    return word if isinstance(word, str) and word in words else "other"


def _number(values: dict[str, Any], name: str) -> float:
    value = values.get(name, 0)
    return float(value) if isinstance(value, int | float) else 0.0
