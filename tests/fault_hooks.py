"""Processes of fedpath that do something at a given point: die, hold still, or send what they should not.

A point is exact: the process is fedpath itself, with a hook that is called there.
"""

from pathlib import Path

_KILLED_COORDINATOR = """
import os, signal
from fedpath.cli.main import main
from fedpath.server.folder import RunFolder
from fedpath.server.journal import Journal

def die():
    os.kill(os.getpid(), signal.SIGKILL)

start, note, closing, summary = RunFolder.start, Journal.note, RunFolder.keep_closing, RunFolder.keep_summary

def starting(self, *values):
    start(self, *values)
    if {state!r} == "gathered":
        die()

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

RunFolder.start, Journal.note = starting, noting
RunFolder.keep_closing, RunFolder.keep_summary = closing_, summarising
main()
"""
"""Dies when ``state`` of round 2 is on disk; before round 1 at "gathered"; later at "closing", "tested", "finished"."""

_KILLED_AGENT = """
import os, signal
from fedpath.cli.main import main
from fedpath.client.agent import flower
from fedpath.client.agent.worker import Worker

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def point_of(order):
    match order.kind:
        case "train":
            return "asked" if order.round == 2 else ""
        case "evaluate":
            return order.split
        case kind:
            return kind

carry_out, answer, push = Worker.carry_out, flower.FleetConnection.answer, flower.push_objects
doing = []

def working(self, order, arrays):
    point = point_of(order)
    if point == {state!r}:
        die()
    result = carry_out(self, order, arrays)
    if point == "asked" and {state!r} == "trained":
        die()
    doing[:] = [point]
    return result

def pushing(*values, **more):
    if doing == ["asked"] and {state!r} == "uploading":
        die()
    return push(*values, **more)

def answering(self, *values):
    answer(self, *values)
    if doing == ["asked"] and {state!r} == "answered":
        die()

Worker.carry_out, flower.FleetConnection.answer, flower.push_objects = working, answering, pushing
main()
"""
"""Dies with the order of round 2 in hand ("asked"), when it is carried out ("trained"), when the envelope of the update
is sent ("uploading"), when it is all there ("answered"); or with another order in hand: "describe", "validation" and
"test" figures, "finish"."""

_POISONED = """
import numpy as np
from fedpath.cli.main import main
from fedpath.client.agent.worker import Worker

train = Worker._train

def poisoned(self, order, arrays):
    update, trained = train(self, order, arrays)
    if order.round == 2:
        trained[sorted(trained)[0]].flat[0] = np.nan
    return update, trained

Worker._train = poisoned
main()
"""
"""Sends a NaN in round 2."""

_SLOW = """
import time
from pathlib import Path
from fedpath.cli.main import main
from fedpath.client.agent.worker import Worker

train = Worker._train

def slow(self, order, arrays):
    while order.round == 2 and not any(Path({state!r}).glob("runs/*/rounds/0002.json")):
        time.sleep(0.05)
    return train(self, order, arrays)

Worker._train = slow
main()
"""
"""Does not train for round 2 before that is over."""

_HELD_UPLOAD = """
import time
from pathlib import Path
from fedpath.cli.main import main
from fedpath.client.agent import flower

push, at = flower.push_objects, Path({state!r})

def pushing(*values, **more):
    if not (at / "go on").exists() and (at / "hold").exists():
        (at / "held").touch()
        while not (at / "go on").exists():
            time.sleep(0.05)
    return push(*values, **more)

flower.push_objects = pushing
main()
"""
"""With a file "hold": makes one "held" when the envelope of an answer is sent; sends the rest when there is "go on"."""

_KILLED_TRAINER = """
import os, signal
from pathlib import Path
from fedpath.cli.main import main
from fedpath.core.training.engines import launch

follow, left = launch._follow, {state!r}

def killing(processes, *, progress, **more):
    def at(done, total, loss):
        global left
        if killing.round == 2 and left > 0:
            left -= 1
            os.kill(processes[-1].popen.pid, signal.SIGKILL)
        progress(done, total, loss)
    return follow(processes, progress=at, **more)

from fedpath.client.agent.worker import Worker
train = Worker._train_model

def train_model(self, order, *values):
    killing.round = order.round
    return train(self, order, *values)

Worker._train_model, launch._follow = train_model, killing
main()
"""
"""Kills the last process that trains, in the middle of round 2, ``state`` times."""


def killed_coordinator(state: str) -> str:
    """The script of a coordinator that dies at a point."""
    return _KILLED_COORDINATOR.replace("{state!r}", repr(state))


def killed_agent(state: str) -> str:
    """The script of an agent that dies at a point."""
    return _KILLED_AGENT.replace("{state!r}", repr(state))


def poisoned_agent() -> str:
    """The script of an agent whose update of round 2 is refused."""
    return _POISONED


def slow_agent(coordinator: Path) -> str:
    """The script of an agent that is late in round 2."""
    return _SLOW.replace("{state!r}", repr(str(coordinator)))


def held_upload(folder: Path) -> str:
    """The script of an agent that holds still in the middle of an upload."""
    return _HELD_UPLOAD.replace("{state!r}", repr(str(folder)))


def killed_trainer(times: int) -> str:
    """The script of an agent that loses a process that trains."""
    return _KILLED_TRAINER.replace("{state!r}", repr(times))
