"""Events of a hospital's agent and what becomes of them as metrics."""

from typing import Any

import pytest

from fedpath.client.monitoring.heard import Heard
from fedpath.client.monitoring.rows import PHASES, ROWS
from fedpath.core.events import Event
from fedpath.core.monitoring.metrics import Metrics
from fedpath.core.monitoring.pulse import Pulse


class Agent:
    """Whoever listens to one."""

    def __init__(self) -> None:
        self.metrics = Metrics(ROWS, "client", lambda: [])
        self.now = 0.0
        self.pulse = Pulse(lambda: self.now)
        self.heard = Heard(self.metrics, self.pulse)

    def tell(self, kind: str, at: float = 0.0, **values: Any) -> None:
        self.heard(Event(kind, at, values))

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"fedpath_{name}", labels)

    def phase(self) -> list[str]:
        return [phase for phase in PHASES if self.value("client_phase", phase=phase) == 1]


@pytest.fixture
def agent() -> Agent:
    return Agent()


def test_phases_follow_one_another(agent: Agent) -> None:
    assert agent.phase() == ["starting"]
    agent.tell("phase", 10.0, phase="waiting")
    agent.tell("phase", 20.0, phase="training")
    assert agent.phase() == ["training"]
    agent.tell("phase", 50.0, phase="sending")
    agent.tell("phase", 51.0, phase="waiting")
    assert agent.phase() == ["waiting"]
    assert agent.value("client_phase_duration_seconds_sum", phase="training") == 30
    assert agent.value("client_phase_duration_seconds_sum", phase="sending") == 1
    assert agent.value("client_phase_duration_seconds_count", phase="evaluating") == 0
    assert agent.value("client_phase_duration_seconds_count", phase="waiting") is None


def test_the_connection(agent: Agent) -> None:
    assert (agent.value("client_connected"), agent.heard.away) == (0, "it has not connected yet")
    agent.tell("joined", federation="lung", address="host:1")
    assert (agent.value("client_connected"), agent.heard.away) == (1, None)
    agent.tell("coordinator_away", reason="nobody answers")
    assert (agent.value("client_connected"), agent.heard.away) == (0, "nobody answers")
    agent.tell("coordinator_back")
    assert (agent.value("client_connected"), agent.heard.away) == (1, None)


def test_slides_are_counted_by_steps_each_pass_and_each_attempt(agent: Agent) -> None:
    agent.tell("order", order="train", run="r1", round=4, bytes=100)
    for done in (10, 20, 24):
        agent.tell("step", round=4, done=done, total=24, loss=0.5)
    agent.tell("trained", round=4, loss=0.25, seconds=1.0, steps=24, patients={})
    assert agent.value("client_samples_total") == 24
    assert agent.value("client_training_loss") == 0.25
    assert agent.value("client_round") == 4
    agent.tell("order", order="train", run="r1", round=5, bytes=100)
    agent.tell("step", round=5, done=10, total=24, loss=0.5)
    agent.tell("training_lost", round=5, reason="…")
    agent.tell("step", round=5, done=12, total=24, loss=0.5)
    agent.tell("step", round=5, done=24, total=24, loss=0.5)
    assert agent.value("client_samples_total") == 24 + 10 + 24
    assert agent.value("client_training_lost_total") == 1


def test_out_of_memory_in_the_middle_begins_again(agent: Agent) -> None:
    agent.tell("order", order="train", run="r1", round=1, bytes=0)
    agent.tell("step", round=1, done=6, total=24, loss=0.5)
    agent.tell("out_of_memory", round=1)
    agent.tell("step", round=1, done=8, total=24, loss=0.5)
    assert agent.value("client_samples_total") == 14
    assert agent.value("client_oom_total") == 1


def test_what_comes_and_what_leaves(agent: Agent) -> None:
    agent.tell("order", order="describe", run="r1", round=None, bytes=300)
    agent.tell("sent", what="description", round=0, bytes=500)
    agent.tell("order", order="unknown", run="r1", round=None, bytes=1)
    assert agent.value("client_orders_total", order="describe") == 1
    assert agent.value("client_orders_total", order="unknown") is None
    assert agent.value("client_transfer_bytes_total", direction="received") == 301
    assert agent.value("client_transfer_bytes_total", direction="sent") == 500


def test_refusals_and_failures_are_counted_by_words_of_a_fixed_set(agent: Agent) -> None:
    for reason in ("own_model", "federation", "/data/slide-7.svs"):
        agent.tell("order_refused", reason=reason, order="train", says="…")
    assert agent.value("client_orders_refused_total", reason="own_model") == 1
    assert agent.value("client_orders_refused_total", reason="federation") == 1
    assert agent.value("client_orders_refused_total", reason="other") == 1
    assert agent.value("client_code_denied_total", reason="own_model") == 1
    assert agent.value("client_code_denied_total", reason="federation") is None
    agent.tell("order_failed", error="patient Mueller", remedy="…", cause="data", about="features")
    agent.tell("order_failed", error="…", remedy="…", cause="refused", about=None)
    agent.tell("training_failed", reason="Mueller", remedy="…", cause="process")
    assert agent.value("client_orders_failed_total", reason="data") == 1
    assert agent.value("client_orders_failed_total", reason="process") == 1
    assert agent.value("client_data_errors_total", reason="features") == 1
    agent.tell("patches_read", slides=3, bytes=9, unreadable=5)
    assert agent.value("client_data_errors_total", reason="patch") == 5
    agent.tell("audit_failed", error="…")
    assert agent.value("audit_write_errors_total") == 1
    text = agent.metrics.text().decode()
    assert not any(secret in text for secret in ("Mueller", "slide-7"))


def test_children_tell_sums_and_peaks(agent: Agent) -> None:
    for pid, slides in ((7, 1), (7, 2), (8, 1), (7, 3)):
        agent.tell("encoder", pid=pid, slides=slides)
    agent.tell("encoder", pid=8, bad_slides=1)
    agent.tell("encoder", pid=7, slides=1)  # another process that got the same number
    assert agent.value("client_slides_encoded_total") == 5
    assert agent.value("client_data_errors_total", reason="slide") == 1
    agent.tell("trainer", pid=7, rank=0, memory_bytes=5e8, gpu=0, gpu_memory_bytes=2e9)
    agent.tell("trainer", pid=8, rank=1, memory_bytes=4e8, gpu=1, gpu_memory_bytes=1e9)
    agent.tell("trainer", pid=9, rank=0, memory_bytes=3e8, gpu=0, gpu_memory_bytes=1e9)
    assert agent.value("client_trainer_memory_bytes") == 5e8
    assert agent.heard.gpu_peaks == {"0": 2e9, "1": 1e9}
    agent.tell("trainer", pid=9, memory_bytes="word")


def test_work_may_take_long_and_children_are_no_sign_of_its_life(agent: Agent) -> None:
    agent.tell("phase", phase="training")
    agent.now = 4 * 3600.0
    assert agent.pulse.stuck() is None
    agent.tell("trainer", pid=7, memory_bytes=1)
    agent.now += 1.0
    assert agent.pulse.stuck() is not None
    agent.tell("step", round=1, done=1, total=2, loss=0.5)
    assert agent.pulse.stuck() is None
