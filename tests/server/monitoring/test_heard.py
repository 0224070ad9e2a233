"""Events of a coordinator and what becomes of them as metrics."""

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fedpath.core.events import Event
from fedpath.core.monitoring.metrics import Metrics
from fedpath.core.monitoring.pulse import Pulse
from fedpath.server.monitoring.heard import Heard
from fedpath.server.monitoring.rows import ROWS


class Coordinator:
    """Whoever listens to one."""

    def __init__(self) -> None:
        self.metrics = Metrics(ROWS, "server", lambda: [])
        self.now = 0.0
        self.pulse = Pulse(lambda: self.now)
        self.heard = Heard(self.metrics, self.pulse)

    def tell(self, kind: str, at: float = 0.0, **values: Any) -> None:
        self.heard(Event(kind, at, values))

    def begin(self, run: str = "r1", round_: int = 1, at: float = 100.0, quorum: int = 2) -> None:
        values = {"round": round_, "rounds": 5, "sites": ["A", "B"], "deadline_s": 60.0, "quorum": quorum}
        self.tell("round_started", at, run=run, **values)

    def finish(self, run: str = "r1", round_: int = 1, at: float = 130.0) -> None:
        more = {"seconds": 30.0, "aggregation_s": 2.0, "training_loss": 0.5, "answered": [], "contributed": []}
        self.tell("round_finished", at, run=run, round=round_, **more)

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def coordinator() -> Coordinator:
    return Coordinator()


def test_a_round_from_beginning_to_end(coordinator: Coordinator) -> None:
    value = coordinator.value
    coordinator.tell("run_taken_up", run="r1", rounds=5, done=0)
    assert value("fedpath_run_active", run="r1") == 1
    coordinator.begin()
    assert value("fedpath_round", run="r1") == 1
    assert value("fedpath_rounds_planned", run="r1") == 5
    assert value("fedpath_round_open", run="r1") == 1
    assert value("fedpath_round_start_timestamp_seconds", run="r1") == 100
    assert value("fedpath_round_deadline_seconds", run="r1") == 60
    assert value("fedpath_round_quorum", run="r1") == 2
    assert value("fedpath_rounds_total", run="r1", outcome="finished") == 0
    coordinator.tell("site_answered", 110.0, run="r1", round=1, site="A", cause=None)
    coordinator.tell("quorum_missing", 111.0, run="r1", round=1, counted=1, needed=2, missing=["B"])
    assert value("fedpath_round_updates", run="r1") == 1
    assert value("fedpath_round_quorum_missing", run="r1") == 1
    coordinator.tell("site_answered", 120.0, run="r1", round=1, site="B", cause=None)
    assert value("fedpath_round_quorum_missing", run="r1") == 0
    coordinator.tell("combining", 121.0, run="r1", round=1)
    coordinator.tell("keeping", 124.0, run="r1", round=1)
    coordinator.tell("checkpoint_kept", 129.0, run="r1", round=1)
    coordinator.tell("judged", 129.0, run="r1", round=0, auc=0.75, loss=0.6, best_round=0)
    coordinator.finish()
    phases = ("collect", "aggregate", "keep", "whole")
    sums = [value("fedpath_round_duration_seconds_sum", run="r1", phase=phase) for phase in phases]
    assert sums == [21, 3, 6, 30]
    assert value("fedpath_round_open", run="r1") == 0
    assert value("fedpath_rounds_total", run="r1", outcome="finished") == 1
    assert value("fedpath_aggregation_duration_seconds_sum") == 2
    assert value("fedpath_checkpoint_last_success_timestamp_seconds", run="r1") == 129
    assert value("fedpath_model_metric", run="r1", metric="auc", split="validation") == 0.75
    assert value("fedpath_model_metric", run="r1", metric="loss", split="train") == 0.5
    coordinator.tell("tested", run="r1", round=1, auc=None, loss=0.4)
    assert value("fedpath_model_metric", run="r1", metric="auc", split="test") is None
    assert value("fedpath_model_metric", run="r1", metric="loss", split="test") == 0.4
    coordinator.tell("run_over", run="r1", outcome="finished")
    assert value("fedpath_run_active", run="r1") == 0
    assert value("fedpath_runs_total", outcome="finished") == 1


@pytest.mark.parametrize(
    ("outcome", "counts_as"), [("failed", "failed"), ("stopped", "stopped"), ("queued", "stopped")]
)
def test_a_run_that_ends_early_ends_its_round(coordinator: Coordinator, outcome: str, counts_as: str) -> None:
    coordinator.tell("run_taken_up", run="r1", rounds=5, done=0)
    coordinator.begin()
    coordinator.tell("quorum_missing", run="r1", round=1, counted=0, needed=2, missing=["A", "B"])
    coordinator.tell("run_over", run="r1", outcome=outcome)
    assert coordinator.value("fedpath_rounds_total", run="r1", outcome=counts_as) == 1
    assert coordinator.value("fedpath_rounds_total", run="r1", outcome="finished") == 0
    assert coordinator.value("fedpath_round_quorum_missing", run="r1") == 0
    assert coordinator.value("fedpath_round_open", run="r1") == 0
    assert coordinator.value("fedpath_runs_total", outcome=outcome) == 1


def test_answers_that_do_not_count_are_counted_by_what_was_wrong(coordinator: Coordinator) -> None:
    coordinator.begin()
    for cause in ("not_finite", "norm", "site", "a reason that names /data/slide.svs"):
        coordinator.tell("site_refused", run="r1", round=1, site="A", cause=cause, reason="…")
    coordinator.tell("site_lost", run="r1", round=1, site="B", cause=None)
    coordinator.tell("site_late", run="r1", round=1, site="B", cause=None)
    rejected = {cause: coordinator.value("fedpath_update_rejected_total", reason=cause) for cause in
                ("not_finite", "norm", "site", "other", "form")}  # fmt: skip
    assert rejected == {"not_finite": 1, "norm": 1, "site": 1, "other": 1, "form": 0}
    assert coordinator.value("fedpath_site_replies_total", site="A", outcome="refused") == 4
    assert coordinator.value("fedpath_site_replies_total", site="B", outcome="lost") == 1
    assert coordinator.value("fedpath_site_replies_total", site="B", outcome="late") == 1
    assert "slide.svs" not in coordinator.metrics.text().decode()
    coordinator.tell("site_refused", run="r1", site="C", reason="another encoder")
    assert coordinator.value("fedpath_site_kept_out_total", site="C") == 1
    assert coordinator.value("fedpath_site_replies_total", site="C", outcome="refused") is None


def test_runs_side_by_side_do_not_mix(coordinator: Coordinator) -> None:
    for run in ("r1", "r2"):
        coordinator.tell("run_taken_up", run=run, rounds=5, done=0)
        coordinator.begin(run)
    coordinator.tell("site_answered", run="r2", round=1, site="A", cause=None)
    coordinator.finish("r1")
    assert coordinator.value("fedpath_round_open", run="r1") == 0
    assert coordinator.value("fedpath_round_open", run="r2") == 1
    assert coordinator.value("fedpath_round_updates", run="r1") == 0
    assert coordinator.value("fedpath_round_updates", run="r2") == 1


def test_of_many_runs_the_latest_keep_their_series(coordinator: Coordinator) -> None:
    for number in range(30):
        coordinator.tell("run_taken_up", run=f"r{number}", rounds=1, done=0)
        coordinator.begin(f"r{number}")
        if number != 3:  # one goes on for long
            coordinator.finish(f"r{number}")
            coordinator.tell("run_over", run=f"r{number}", outcome="finished")
    runs = {
        sample.labels["run"]
        for family in text_string_to_metric_families(coordinator.metrics.text().decode())
        for sample in family.samples
        if "run" in sample.labels
    }
    assert runs == {"r3", *(f"r{number}" for number in range(10, 30))}
    assert coordinator.value("fedpath_runs_total", outcome="finished") == 29


def test_a_run_that_never_began_has_no_series(coordinator: Coordinator) -> None:
    coordinator.tell("run_over", run="r1", outcome="failed")
    assert coordinator.value("fedpath_run_active", run="r1") is None
    assert coordinator.value("fedpath_runs_total", outcome="failed") == 1


def test_combining_may_take_long_and_a_run_that_is_over_is_not_stuck(coordinator: Coordinator) -> None:
    coordinator.pulse.beat("r1", 600.0)
    coordinator.begin()
    coordinator.tell("combining", run="r1", round=1)
    coordinator.now = 3600.0
    assert coordinator.pulse.stuck() is None
    coordinator.tell("run_over", run="r1", outcome="finished")
    coordinator.now = 1e6
    assert coordinator.pulse.stuck() is None


def test_trouble_of_the_coordinator_itself(coordinator: Coordinator) -> None:
    coordinator.tell("registry_away", reason="registry.db is locked")
    assert coordinator.heard.away == "registry.db is locked"
    coordinator.tell("registry_back")
    assert coordinator.heard.away is None
    coordinator.tell("checkpoint_damaged", run="r1", round=3, back_to=2, what="model")
    coordinator.tell("combiner_replaced", address="local", reason="…")
    coordinator.tell("cluster_lost", address="local", reason="…")
    for name in ("checkpoint_damaged", "combiners_replaced", "clusters_lost"):
        assert coordinator.value(f"fedpath_{name}_total") == 1


def test_sums_of_child_processes_are_added_up(coordinator: Coordinator) -> None:
    for pid, pieces in ((7, 10), (7, 25), (8, 5), (7, 25)):  # one was lost, and another took its place
        coordinator.tell("combiner", pid=pid, pieces=pieces, memory_bytes=4e8, dropped=0)
    assert coordinator.value("fedpath_combiner_pieces_total") == 30
    assert coordinator.value("fedpath_combiner_memory_bytes") == 4e8
