from fedpath.core.monitoring.pulse import Pulse


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_loop_is_stuck_when_it_is_silent_for_longer_than_it_said() -> None:
    clock = Clock()
    pulse = Pulse(clock)
    assert pulse.stuck() is None
    pulse.beat("run 1", 10.0)
    pulse.beat("the queue", 60.0)
    clock.now += 10.0
    assert pulse.stuck() is None
    clock.now += 1.0
    assert pulse.stuck() == "run 1: no sign of life for 11 s"
    clock.now += 60.0
    assert pulse.stuck() == "run 1: no sign of life for 71 s; the queue: no sign of life for 71 s"
    pulse.beat("the queue", 60.0)
    assert pulse.stuck() == "run 1: no sign of life for 71 s"


def test_a_loop_that_has_ended_is_not_stuck() -> None:
    clock = Clock()
    pulse = Pulse(clock)
    pulse.beat("run 1", 10.0)
    pulse.over("run 1")
    pulse.over("run 2")
    clock.now += 1000.0
    assert pulse.stuck() is None
