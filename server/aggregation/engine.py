"""Where updates are combined: `[aggregation] engine`. One engine serves all rounds of a run.

"local" is threads of the coordinator. "ray" is actors of a cluster, behind a process of their own
(`fedpath.server.aggregation.foreman`). What holds for "ray":

- The same bits: the mean's blocks and order are those of the local engine, and so are all others'.
- An actor that dies is replaced, and its pieces are done again. A cluster that dies is looked for once more; then the
  run stops with all kept, and the same command goes on.
- The coordinator holds the model, the result and a few pieces, and reads no update unless the cluster cannot.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpath.core.cluster import LOCAL, joined
from fedpath.core.config.federated import AggregationSection
from fedpath.core.errors import ConfigError, FederationError, StoppedError
from fedpath.core.events import EventLog
from fedpath.core.exchange.stored import F32
from fedpath.core.exchange.wire import Arrays
from fedpath.server.aggregation.blocks import Engine, LocalPasses, Part, Reduce
from fedpath.server.aggregation.choose import check_installed
from fedpath.server.aggregation.foreman import OPTION, LostError, oversee
from fedpath.server.aggregation.pieces import Pass, Piece, Source, SourcePart, cut
from fedpath.server.aggregation.updates import Block

ADDRESS_VARIABLE = "FEDPATH_RAY_ADDRESS"
"""Where the coordinator's cluster is, for runs whose `[aggregation]` does not say it: the place knows, not the run."""
_LISTEN_S = 0.5
_ENDS_WITHIN_S = 10.0

Take = Callable[[Piece, Any], None]
"""Takes a piece and what became of it."""


@contextmanager
def engine_of(settings: AggregationSection, events: EventLog, stop: threading.Event) -> Iterator[Engine]:
    """Give the engine that `[aggregation]` asks for.

    Where this process is connected to a cluster already, as a simulation is, that one is used; else that of
    `ray_address`, that of `FEDPATH_RAY_ADDRESS`, or one that is started here.

    Args:
        settings: `[aggregation]`.
        events: where it is told that an actor or the cluster was lost.
        stop: set it to give up.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers.
    """
    if settings.engine == "local":
        yield LocalPasses
        return
    check_installed(settings)
    where = joined() or settings.ray_address or os.environ.get(ADDRESS_VARIABLE) or LOCAL
    cluster = Cluster(where, settings.ray_workers, events, stop)
    try:
        cluster.open()
        yield cluster.passes
    finally:
        cluster.close()


class Cluster:
    """Actors of a Ray cluster, as a coordinator knows them.

    Args:
        address: of the cluster; "local" starts one.
        workers: actors; as many as the cluster has CPUs, at most 8, by default.
        events: see `engine_of`.
        stop: likewise.
    """

    def __init__(self, address: str, workers: int | None, events: EventLog, stop: threading.Event) -> None:
        self._address, self._workers, self._events, self._stop = address, workers, events, stop
        self._child: tuple[SpawnProcess, Connection] | None = None

    def open(self) -> None:
        """Connect.

        Raises:
            ConfigError: no cluster answers.
            StoppedError: ``stop`` was set.
        """
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        child = context.Process(
            target=oversee, args=(theirs, self._address, self._workers), name="combine", daemon=True
        )
        child.start()
        theirs.close()
        self._child = child, ours
        try:
            heard = self._hear()
        except LostError as error:
            heard = ("lost", str(error))
        match heard:
            case ("lost", reason):
                raise ConfigError(
                    f"{OPTION} {self._address}: {reason}",
                    remedy="install fedpath[ray] in the same version on every machine of the cluster and look at "
                    "Ray's logs there, or take engine = 'ray' out",
                )
            case ("failed", message, remedy):
                raise ConfigError(message, remedy=remedy)

    def close(self) -> None:
        """Disconnect; a cluster that was started here ends."""
        if self._child is None:
            return
        (child, pipe), self._child = self._child, None
        pipe.close()
        child.join(_ENDS_WITHIN_S)
        if child.is_alive():
            child.kill()
            child.join()
        child.close()

    def passes(self, reference: Arrays) -> "RayPasses":
        """Return what goes over the updates of a round; see `Engine`."""
        return RayPasses(self, reference)

    def do(self, of_pass: Pass, pieces: Sequence[Piece], fill: Callable[[Piece], Piece], take: Take) -> None:
        """Do a pass.

        Args:
            of_pass: what it is.
            pieces: of it.
            fill: adds to a piece what is not in the files.
            take: gets each piece's result, in any order; where the cluster was lost, some a second time.

        Raises:
            FederationError: it cannot be done.
            StoppedError: ``stop`` was set.
        """
        try:
            self._do(of_pass, pieces, fill, take)
        except LostError as error:
            self._events.emit("cluster_lost", address=self._address, reason=str(error))
            try:
                self.close()
                self.open()
                self._do(of_pass, pieces, fill, take)
            except (LostError, ConfigError) as again:
                raise FederationError(
                    f"{OPTION} {self._address}: the Ray cluster was lost while updates were combined ({again})",
                    remedy="start it again, or take engine = 'ray' out; the updates are kept: the same command goes on "
                    "there",
                ) from None

    def _do(self, of_pass: Pass, pieces: Sequence[Piece], fill: Callable[[Piece], Piece], take: Take) -> None:
        self._say(("pass", of_pass))
        waiting = iter(pieces)
        while True:
            match self._hear():
                case ("give",):
                    piece = next(waiting, None)
                    self._say(None if piece is None else fill(piece))
                case ("done", number):
                    piece = pieces[number]
                    take(piece, self._outcome(of_pass, piece))
                case ("replaced", reason):
                    self._events.emit("combiner_replaced", address=self._address, reason=reason)
                case ("over",):
                    return
                case ("lost", reason):
                    raise LostError(reason)
                case ("failed", message, remedy):
                    raise FederationError(message, remedy=remedy)

    def _outcome(self, of_pass: Pass, piece: Piece) -> Any:
        _, pipe = self._there()
        try:
            if of_pass.reduce is None:
                return pipe.recv()
            out = np.empty(sum(block.stop - block.start for _, block in piece.blocks), np.float32)
            pipe.recv_bytes_into(out.data.cast("B"))
            return out
        except (EOFError, OSError):
            raise LostError("the process that talks to it has ended") from None

    def _say(self, message: Any) -> None:
        _, pipe = self._there()
        try:
            pipe.send(message)
        except OSError:
            raise LostError("the process that talks to it has ended") from None

    def _hear(self) -> tuple[Any, ...]:
        _, pipe = self._there()
        try:
            while not pipe.poll(_LISTEN_S):
                if self._stop.is_set():
                    raise StoppedError
            message: tuple[Any, ...] = pipe.recv()
        except (EOFError, OSError):
            raise LostError("the process that talks to it has ended") from None
        return message

    def _there(self) -> tuple[SpawnProcess, Connection]:
        if self._child is None:
            raise LostError("it is not connected")
        return self._child


class RayPasses:
    """Goes over the updates' files with actors: see `fedpath.server.aggregation.blocks.Passes`.

    Args:
        cluster: where they are.
        reference: the round's model.
    """

    def __init__(self, cluster: Cluster, reference: Arrays) -> None:
        self._cluster, self._reference = cluster, reference

    def reduce(self, parts: Sequence[Part], reduce: Reduce) -> Arrays:
        """See `Passes`."""
        arrays = {part.name: np.empty_like(self._reference[part.name]) for part in parts}

        def take(piece: Piece, values: F32) -> None:
            start = 0
            for _, block in piece.blocks:
                size = block.stop - block.start
                arrays[block.name].reshape(-1)[block.start : block.stop] = values[start : start + size]
                start += size

        self._do(parts, reduce, take)
        return arrays

    def squared_distances(self, parts: Sequence[Part]) -> list[NDArray[np.float64]]:
        """See `Passes`."""
        totals = [np.zeros((len(part.updates),) * 2) for part in parts]
        waiting: dict[int, tuple[Piece, list[NDArray[np.float64]]]] = {}
        added = 0

        def take(piece: Piece, distances: list[NDArray[np.float64]]) -> None:
            nonlocal added
            if piece.number >= added:
                waiting[piece.number] = piece, distances
            # In the order of the blocks, whichever actor was first; only what came too early waits.
            while added in waiting:
                piece, distances = waiting.pop(added)
                for (index, _), of_block in zip(piece.blocks, distances, strict=True):
                    totals[index] += of_block
                added += 1

        self._do(parts, None, take)
        return totals

    def _do(self, parts: Sequence[Part], reduce: Reduce | None, take: Take) -> None:
        updates = list({id(update): update for part in parts for update in part.updates}.values())
        index_of = {id(update): index for index, update in enumerate(updates)}
        sources = [Source.of(update) for update in updates]
        of_pass = Pass(
            reduce,
            sources,
            [SourcePart([index_of[id(one)] for one in part.updates], part.weights, part.together) for part in parts],
        )
        pieces = [Piece(number, run) for number, run in enumerate(cut(parts, self._reference))]

        def fill(piece: Piece) -> Piece:
            here, bases = {}, {}
            for index, block in piece.blocks:
                moving = [one for one in of_pass.parts[index].updates if sources[one].moves()]
                if moving:
                    here[block.name, block.start] = _cut_of(self._reference, block)
                for one in moving:
                    if (base := updates[one].base) is not None:
                        bases[one, block.name, block.start] = _cut_of(base, block)
            return Piece(piece.number, piece.blocks, here, bases)

        self._cluster.do(of_pass, pieces, fill, take)


def _cut_of(arrays: Arrays, block: Block) -> F32:
    return arrays[block.name].reshape(-1)[block.start : block.stop]
