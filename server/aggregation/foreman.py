"""The process that talks to Ray for a coordinator: it gives pieces of a pass to actors and hands back what they become.

Ray ends a process whose cluster is gone, changes its signal handlers and takes a few hundred megabytes. A coordinator
that hospitals are connected to must not be that process: this one is its child and may end at any time.

The child asks, the coordinator answers, so that neither waits with a full pipe for the other:

```
coordinator  "pass", Pass                   one pass begins
child        "give"                         asks for a piece, answered by a Piece or None
child        "done", number                 followed by what became of it
child        "replaced", reason             an actor was lost; its pieces are done again
child        "over"                         the pass is done
child        "lost", reason                 the cluster is; the child ends
child        "failed", message, remedy      the work cannot be done
```
"""

import os
import resource
import signal
import sys
import traceback
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from fedpath.core.cluster import connected, reachable
from fedpath.core.errors import FederationError, FedpathError
from fedpath.core.exchange.stored import F32
from fedpath.core.monitoring.children import tell as tell_daemon
from fedpath.server.aggregation.pieces import Outcome, Pass, Piece, UnseenError, read_all, work

OPTION = "aggregation.ray_address"
_MOST_WORKERS = 8
_MOST_TRIES = 3
"""Of a piece whose actors die."""
_AHEAD = 2
"""Pieces that an actor has: the next one is there when it is done with one."""
_LOOK_EVERY_S = 5.0
"""How long to wait for an actor before looking whether the cluster is still there."""
_STARTS_WITHIN_S = 300.0
_STORE_BYTES = 512 * 2**20
"""Of the store of a cluster that is started here: the pieces under way."""


class LostError(Exception):
    """The cluster is gone."""


class Hand:
    """Works on pieces; an actor."""

    def version(self) -> str:
        """Return the version of fedpath where it runs."""
        return version("fedpath")

    def work(self, of_pass: Pass, piece: Piece, *sent: F32) -> Outcome | None:
        """Do a piece; None where it does not see the files and got no blocks."""
        try:
            return work(of_pass, piece, sent or None)
        except UnseenError:
            return None


def oversee(pipe: Connection, address: str, workers: int | None) -> None:
    """Be the child: connect, hire, say "ready" or what is wrong, and do passes until the coordinator hangs up.

    Args:
        pipe: to the coordinator.
        address: of the cluster; "local" starts one.
        workers: actors; one a CPU of the cluster, at most 8, by default.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the coordinator's to handle
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):  # Ray would print paragraphs between the coordinator's lines
        os.dup2(silence, stream.fileno())
    own = {"object_store_memory": _STORE_BYTES}
    try:
        with connected(address, OPTION, **own) as ray:
            crew = _Crew(ray, address, workers)
            crew.complete()  # now: a cluster without fedpath is to be found before hospitals have trained for hours
            pipe.send(("ready", crew.size))
            while True:
                _, of_pass = pipe.recv()
                _do(pipe, crew, of_pass)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the coordinator has hung up
        return
    except LostError as error:
        pipe.send(("lost", str(error)))
    except FedpathError as error:
        pipe.send(("failed", error.message, error.remedy))
    except Exception:
        # Nobody reads what this process prints.
        pipe.send(("failed", f"the process that talks to Ray failed: {traceback.format_exc()}", "report this"))
        raise


@dataclass(slots=True)
class _Hired:
    """An actor."""

    hand: Any
    sees: bool = True
    """Whether it sees the updates' files, as far as is known."""
    tasks: set[Any] = field(default_factory=set)


class _Crew:
    """The actors; kept between passes, replaced when they are lost."""

    def __init__(self, ray: Any, address: str, workers: int | None) -> None:
        self.ray, self._address = ray, address
        resources: dict[str, float] = ray.cluster_resources()
        self.size = workers or max(1, min(_MOST_WORKERS, int(resources.get("CPU", 1))))
        self.hired: list[_Hired] = []
        self.pieces = 0
        """That they have done."""
        # They work for a moment a round. A claim on CPUs would keep others waiting between the rounds, other runs'
        # actors and simulated hospitals among them; without one, all share the processors.
        self._hand = ray.remote(Hand).options(num_cpus=0, scheduling_strategy="SPREAD", max_restarts=0)

    def complete(self) -> None:
        """Hire who is missing.

        Raises:
            LostError: the cluster starts no actor.
            FedpathError: it has another version of fedpath.
        """
        new = [_Hired(self._hand.remote()) for _ in range(self.size - len(self.hired))]
        for one, asked in [(one, one.hand.version.remote()) for one in new]:
            try:
                there = self.ray.get(asked, timeout=_STARTS_WITHIN_S)
            except self.ray.exceptions.RayError as error:
                raise LostError(f"it starts no actor: {_line(error)}") from None
            if there != version("fedpath"):
                raise FederationError(
                    f"{OPTION}: fedpath {there} is installed there, {version('fedpath')} here",
                    remedy="install the same version on every machine of the cluster",
                )
            self.hired.append(one)

    def replace(self, lost: _Hired) -> None:
        """Hire another one for one that is lost."""
        if lost in self.hired:
            self.hired.remove(lost)
        self.complete()

    def check(self) -> None:
        """Look whether the cluster is there.

        Raises:
            LostError: it is not.
        """
        client = self._address.startswith("ray://")
        if not reachable(self._address if client else self.ray.get_runtime_context().gcs_address):
            raise LostError("it does not answer any more")


def _do(pipe: Connection, crew: _Crew, of_pass: Pass) -> None:
    """Do a pass."""
    ray = crew.ray
    crew.complete()
    shared = ray.put(of_pass)
    again: deque[Piece] = deque()
    tries: Counter[int] = Counter()
    tasks: dict[Any, tuple[_Hired, Piece]] = {}
    more = True

    def give(one: _Hired, piece: Piece) -> None:
        sent: Sequence[F32] = () if one.sees else read_all(of_pass, piece)
        task = one.hand.work.remote(shared, piece, *[ray.put(rows) for rows in sent])
        tasks[task] = one, piece
        one.tasks.add(task)

    while True:
        for one in sorted(crew.hired, key=lambda one: len(one.tasks)):
            while len(one.tasks) < _AHEAD and (again or more):
                piece = again.popleft() if again else _ask(pipe)
                if piece is None:
                    more = False
                    break
                give(one, piece)
        if not tasks:
            break
        ended, _ = ray.wait(list(tasks), num_returns=1, timeout=_LOOK_EVERY_S)
        if not ended:
            crew.check()
        for task in ended:
            one, piece = tasks.pop(task)
            one.tasks.discard(task)
            try:
                outcome = ray.get(task)
            except ray.exceptions.RayTaskError as error:
                raise _failure(error) from None
            except ray.exceptions.RayError as error:
                tries[piece.number] += 1
                if tries[piece.number] >= _MOST_TRIES:
                    raise LostError(f"{_MOST_TRIES} actors died of the same piece of work: {_line(error)}") from None
                again.append(piece)
                if one in crew.hired:
                    crew.check()
                    crew.replace(one)
                    pipe.send(("replaced", _line(error)))
                continue
            if outcome is None:
                one.sees = False
                again.append(piece)
            else:
                _hand_back(pipe, piece, outcome)
                crew.pieces += 1
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    tell_daemon("combiner", pieces=crew.pieces, actors=len(crew.hired), memory_bytes=held)
    pipe.send(("over",))


def _ask(pipe: Connection) -> Piece | None:
    pipe.send(("give",))
    piece: Piece | None = pipe.recv()
    return piece


def _hand_back(pipe: Connection, piece: Piece, outcome: Outcome) -> None:
    pipe.send(("done", piece.number))
    if isinstance(outcome, np.ndarray):
        pipe.send_bytes(outcome.data.cast("B"))
    else:
        pipe.send(outcome)


def _failure(error: Any) -> Exception:
    """Return what an actor raised."""
    cause = error.cause
    if isinstance(cause, FedpathError):
        return cause
    return FederationError(f"aggregation.engine ray: {error}", remedy="report this, or use engine = 'local' meanwhile")


def _line(error: Exception) -> str:
    """Return the first line of what Ray says."""
    return str(error).partition("\n")[0][:300]
