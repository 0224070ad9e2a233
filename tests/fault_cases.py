"""What the fault tests share: a run to disturb, processes that kill themselves at a given point, the verdict.

A point is exact: the process that is to die is fedpath itself, with a hook that sends it SIGKILL there.
"""

import json
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from federation import Federation, wait_until

from fedpath.core.models import load_model
from fedpath.server.records import read_rounds

ROUNDS = 3
DEADLINE_S = 180.0

KILLED_COORDINATOR = """
import os, signal
from fedpath.cli.main import main
from fedpath.server.folder import RunFolder
from fedpath.server.journal import Journal

def die():
    os.kill(os.getpid(), signal.SIGKILL)

note, closing, summary = Journal.note, RunFolder.keep_closing, RunFolder.keep_summary

def noting(self, state, **values):
    note(self, state, **values)
    if (state, self._path.name[:4]) == ({state!r}, "0002"):
        die()

def closing_(self, kept):
    closing(self, kept)
    if {state!r} == ("tested" if kept.test is not None else "closing"):
        die()

def summarising(self, kept):
    if {state!r} == "finished":
        die()
    summary(self, kept)

Journal.note, RunFolder.keep_closing, RunFolder.keep_summary = noting, closing_, summarising
main()
"""
"""Dies when ``state`` of round 2 is on disk, or later at "closing", "tested", "finished"."""

KILLED_AGENT = """
import os, signal
from fedpath.cli.main import main
from fedpath.client.agent.flower import FleetConnection
from fedpath.client.agent.worker import Worker
from fedpath.core.exchange.messages import Train

def die():
    os.kill(os.getpid(), signal.SIGKILL)

carry_out, answer = Worker.carry_out, FleetConnection.answer
doing = []

def working(self, order, arrays):
    second = isinstance(order, Train) and order.round == 2
    if second and {state!r} == "asked":
        die()
    result = carry_out(self, order, arrays)
    if second and {state!r} == "trained":
        die()
    doing[:] = [second]
    return result

def answering(self, *values):
    answer(self, *values)
    if doing == [True] and {state!r} == "answered":
        die()

Worker.carry_out, FleetConnection.answer = working, answering
main()
"""
"""Dies with the order of round 2 in hand ("asked"), when it is carried out ("trained"), when the update is uploaded."""


@dataclass(frozen=True, slots=True)
class Whole:
    """What a run ended with."""

    results: list[str]
    """Hash of the model after each round."""
    last: dict[str, bytes]
    best: dict[str, bytes]
    counted: dict[str, list[int]]


def configure(federation: Federation) -> None:
    """Make the run the one that all these tests disturb."""
    federation.configure(rounds=ROUNDS, training="local_epochs = 20", server="grace_s = 2\nround_timeout_s = 120")


def whole_run(federation: Federation) -> Whole:
    """Run it undisturbed."""
    federation.start_server()
    federation.start_sites()
    assert [federation.wait(name) for name in ("server", *federation.sites)] == [0] * 4
    return read_whole(federation.run_folder())


def read_whole(run: Path) -> Whole:
    """Read what a run ended with."""
    summary = json.loads((run / "summary.json").read_text())
    results = [manifest.result for manifest in read_rounds(run)]
    return Whole(results, _state(run / "last.safetensors"), _state(run / "best.safetensors"), summary["rounds_counted"])


def finish(federation: Federation, whole: Whole, names: Sequence[str]) -> str:
    """Wait for the end; check that it is that of the undisturbed run, and return so in words."""
    codes = {name: federation.wait(name, DEADLINE_S) for name in names}
    assert codes == dict.fromkeys(names, 0), {name: federation.output(name)[-2000:] for name in names if codes[name]}
    for name in names:
        assert "Traceback" not in federation.output(name), federation.output(name)
    end = read_whole(federation.run_folder())
    assert end.results == whole.results
    assert end == whole
    # No update was lost, and none counted twice.
    assert all(rounds == list(range(1, ROUNDS + 1)) for rounds in end.counted.values())
    assert not any((federation.run_folder() / "updates").glob("*/*"))
    return "completed, same bits"


def killed(federation: Federation, name: str) -> float:
    """Wait until a process has died by SIGKILL; return when."""
    assert federation.wait(name, DEADLINE_S) == -signal.SIGKILL, federation.output(name)[-2000:]
    return time.monotonic()


def round_done(federation: Federation, round_: int = 2) -> Callable[[], bool]:
    """Return whether a round's manifest is there, as a condition."""
    return lambda: any((federation.state / "runs").glob(f"*/rounds/{round_:04d}.json"))


def recovered_after(federation: Federation, since: float) -> float:
    """Wait until round 2 is done; return the seconds since a fault."""
    wait_until(round_done(federation), "round 2 is done", DEADLINE_S)
    return time.monotonic() - since


def _state(path: Path) -> dict[str, bytes]:
    model, _ = load_model(path)
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}
