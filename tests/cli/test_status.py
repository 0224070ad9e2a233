"""The line of status: what it says, and that it is there on a terminal alone."""

import os
import pty
import select
import sys
import time

import pytest

from fedpath.cli.status import Doing, shown
from fedpath.core.events import Event


def event(kind: str, **values: object) -> Event:
    return Event(kind, 0.0, values)


ROUND = event("round_started", round=3, rounds=10, sites=["A", "B"])


def test_a_coordinator() -> None:
    doing = Doing()
    assert doing.after(event("site_answered", round=3, site="A")) is None  # of a round that it has not seen begin
    assert doing.after(event("listening", address="h:1")) == "waiting for hospitals"
    assert doing.after(ROUND) == "round 3 of 10: 0 of 2 hospitals have answered"
    assert doing.after(event("site_answered", round=3, site="A")) == "round 3 of 10: 1 of 2 hospitals have answered"
    assert doing.after(event("site_answered", round=3, site="A")) == "round 3 of 10: 1 of 2 hospitals have answered"
    assert doing.after(event("round_finished", round=3)) == "round 3 of 10 is done"
    assert doing.after(event("judged", round=3, auc=0.5)) is None


def test_runs_side_by_side_are_told_apart() -> None:
    doing = Doing()
    for run in ("x", "y"):
        doing.after(event("round_started", run=run, round=1, rounds=2, sites=["A", "B"]))
    said = doing.after(event("site_answered", run="y", round=1, site="B"))
    assert said == "y: round 1 of 2: 1 of 2 hospitals have answered"
    said = doing.after(event("site_answered", run="x", round=1, site="A"))
    assert said == "x: round 1 of 2: 1 of 2 hospitals have answered"


def test_a_hospital() -> None:
    doing = Doing()
    assert doing.after(event("joined", federation="f", address="h:1")) == "waiting for the coordinator"
    assert doing.after(event("step", round=2, done=5, total=24, loss=0.5)) == "round 2: step 5 of 24, loss 0.500"
    moving = event("moving", way="received", done=3 << 20, total=9 << 20)
    assert doing.after(moving) == "received arrays: 3 of 9 MiB"
    assert doing.after(event("moving", way="received", done=9 << 20, total=9 << 20)) is None
    assert doing.after(event("coordinator_away", reason="x")) == "the coordinator is away"


def test_elsewhere_than_on_a_terminal_nothing_is_added(capsys: pytest.CaptureFixture[str]) -> None:
    def say(_: Event) -> None:
        raise AssertionError

    assert shown(say) is say


def read_until(terminal: int, end: str, *, after: str, deadline_s: float = 30) -> str:
    """What a terminal was sent, up to ``end`` behind ``after``: it comes in pieces."""
    seen, deadline = "", time.monotonic() + deadline_s
    while end not in seen.partition(after)[2]:
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, seen
        seen += os.read(terminal, 65536).decode()
    return seen


def test_on_a_terminal_it_stands_below_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w", buffering=1) as stream:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys, "stdout", stream)
        listener = shown(lambda happened: print(f"said: {happened.kind}"))
        listener(ROUND)
        listener(event("round_finished", round=3))
        listener._line.stop()  # type: ignore[attr-defined]
        monkeypatch.undo()
        stream.flush()
        written = read_until(ours, "\x1b[2K", after="round 3 of 10 is done")  # what was there is wiped out at the end
    os.close(ours)
    assert "said: round_started" in written
    assert "round 3 of 10: 0 of 2 hospitals have answered" in written
    assert "said: round_finished" in written
