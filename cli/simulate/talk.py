"""The hospitals of a simulation, as a coordinator knows them: the `Talk` over Ray.

Orders wait here and become Ray tasks as processes are free, so what is under way, and the memory it takes, does not
grow with the number of hospitals. The model goes into Ray's store once a round; small answers come back as they are,
the arrays of large ones as files.

A task is not tried again by Ray: a hospital whose process died is not there for the rest of the round, and is asked
again in the next one.
"""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from fedpath.cli.simulate.hospital import answer
from fedpath.cli.simulate.processes import Processes
from fedpath.core.config import SiteConfig
from fedpath.core.errors import RefusedError
from fedpath.core.events import EventLog
from fedpath.core.exchange.messages import (
    Describe,
    Finish,
    Order,
    Receipt,
    Refusal,
    Refuse,
    Train,
    answer_in,
    encode,
)
from fedpath.core.exchange.parcel import Parcel
from fedpath.core.exchange.wire import Arrays
from fedpath.server.talk import Asked, Reply, Silence

Progress = Callable[[Order, int, int], None]
"""Called with an order that was answered, how many have answered it and how many were asked."""
_HELD = 4
"""Orders under way and answers that nobody has fetched, for each process."""


def _tell_nobody(order: Order, done: int, asked: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Failures:
    """Which hospitals' processes die."""

    share: float = 0.0
    """Of all trainings."""
    seed: int = 0

    def die_at(self, site: str, order: Order) -> str | None:
        """Return at which event of its log a hospital's process dies; None if it lives."""
        if not isinstance(order, Train):
            return None
        drawn = hashlib.sha256(f"{self.seed}/{site}/{order.round}".encode()).digest()
        if int.from_bytes(drawn[:7]) >= self.share * 256**7:
            return None
        return "validated" if drawn[7] % 2 else "trained"


NONE_FAILS = Failures()


@dataclass(slots=True)
class _Open:
    """An order that has not been answered."""

    order: Order
    content: bytes
    model: Any
    """In Ray's store."""
    sent_bytes: int
    task: Any = None
    """None while it waits."""


class RayTalk:
    """See `fedpath.server.talk.Talk`.

    Args:
        hospitals: site.toml by name.
        federation: they are part of.
        processes: that carry out the orders.
        folder: on the file system of the run's folder, for large answers.
        events: where it is told what a hospital's process ended with.
        failures: which of them die.
        in_order: answers are heard in the order of the questions, whoever was first: what follows from their order is
            the same then for any number of processes.
        keep_models: hospitals write the model that they get in the end.
        progress: told after every answer.
    """

    def __init__(
        self,
        hospitals: Mapping[str, SiteConfig],
        federation: str,
        processes: Processes,
        folder: Path,
        events: EventLog,
        *,
        failures: Failures = NONE_FAILS,
        in_order: bool = False,
        keep_models: bool = True,
        progress: Progress = _tell_nobody,
    ) -> None:
        self._hospitals, self._federation, self._processes = dict(hospitals), federation, processes
        self._folder, self._events, self._failures = folder, events, failures
        self._in_order, self._keep_models, self._progress = in_order, keep_models, progress
        self._ray = processes.ray
        self._task = self._ray.remote(answer).options(num_cpus=1, num_gpus=processes.gpus, max_retries=0)
        self._here = set(hospitals)
        self._down: dict[str, str] = {}
        """Hospitals that are there again at the next question, with the reason why they are not now."""
        self._open: dict[Asked, _Open] = {}
        self._waiting: deque[Asked] = deque()
        self._tasks: dict[Any, Asked] = {}
        self._heard: dict[Asked, Reply] = {}
        """Answers that nobody has fetched."""
        self._numbers = count(1)
        self._question: tuple[Any, ...] = ()
        self._asked = self._answered = 0
        self._model: tuple[tuple[str | None, ...], Any, int] | None = None
        """What was put into Ray's store last: hashes, reference, bytes."""

    def online(self) -> set[str]:
        """Return the hospitals that are there."""
        return set(self._here)

    def post(self, orders: Mapping[str, Order], arrays: Arrays, ttl_s: float) -> list[Asked]:
        """Queue orders. Hospitals that went down at an earlier question are there again."""
        posted = []
        for site, order in orders.items():
            self._note_question(order)
            asked = Asked(site, f"{next(self._numbers):08d}")
            posted.append(asked)
            content, (model, size) = encode(order), self._stored(order, arrays)
            if site not in self._here:
                self._hear(order, Reply(asked, Silence(self._down.get(site, "it has left")), 0, 0))
            elif isinstance(order, Refuse) or (_is_goodbye(order) and not self._keep_models):
                self._here.discard(site)
                receipt = encode(Receipt())
                self._hear(order, Reply(asked, Receipt(), len(content) + size, len(receipt), content=receipt))
            else:
                self._open[asked] = _Open(order, content, model, len(content) + size)
                self._waiting.append(asked)
        self._start()
        return posted

    def next_reply(self, asked: Collection[Asked], timeout_s: float) -> Reply | None:
        """Return the answer of whoever is first; with ``in_order``, of whoever was asked first."""
        deadline = time.monotonic() + timeout_s
        while True:
            candidates = [min(asked, key=_number)] if self._in_order else self._heard
            one = next((one for one in candidates if one in self._heard and one in asked), None)
            if one is not None:
                reply = self._heard.pop(one)
                self._start()
                return reply
            left = deadline - time.monotonic()
            if left < 0:
                return None
            if not self._tasks:
                time.sleep(left)
                continue
            ended, _ = self._ray.wait(list(self._tasks), timeout=left)
            for task in ended:
                self._take_in(task)
            self._start()

    def drop(self, asked: Asked) -> None:
        """Forget an order; a process that is at it is ended."""
        reply, open_ = self._heard.pop(asked, None), self._open.pop(asked, None)
        if reply is not None and reply.file is not None:
            reply.file.unlink(missing_ok=True)
        if open_ is not None and open_.task is not None:
            del self._tasks[open_.task]
            self._ray.cancel(open_.task, force=True)
        self._start()

    def _note_question(self, order: Order) -> None:
        """Count how many were asked the same; with another question, those that went down are there again."""
        stage = None if order.facts.stage is None else order.facts.stage.name
        question = (order.kind, getattr(order, "round", None), getattr(order, "split", None), stage)
        if question != self._question:
            self._question, self._asked, self._answered = question, 0, 0
            self._here |= self._down.keys()
            self._down.clear()
        self._asked += 1

    def _stored(self, order: Order, arrays: Arrays) -> tuple[Any, int]:
        """Return the arrays in Ray's store, where they are put once, and their bytes."""
        if not arrays:
            return {}, 0
        hashes = (getattr(order, "base", None), getattr(order, "control", None))
        if self._model is None or self._model[0] != hashes:
            self._model = (hashes, self._ray.put(arrays), sum(array.nbytes for array in arrays.values()))
        return self._model[1:]

    def _start(self) -> None:
        """Give free processes their tasks."""
        processes, held = self._processes, len(self._tasks) + len(self._heard)
        most = processes.at_once * processes.ahead
        while self._waiting and len(self._tasks) < most and held < _HELD * processes.at_once:
            asked = self._waiting.popleft()
            if (open_ := self._open.get(asked)) is None:  # dropped
                continue
            open_.task = self._task.remote(
                self._hospitals[asked.site],
                self._federation,
                open_.content,
                open_.model,
                self._folder / f"{asked.id}.safetensors",
                self._failures.die_at(asked.site, open_.order),
            )
            self._tasks[open_.task] = asked
            held += 1

    def _take_in(self, task: Any) -> None:
        """Note what became of a task, and of the hospital."""
        asked = self._tasks.pop(task)
        open_ = self._open.pop(asked)
        reply = self._reply(asked, open_, task)
        match reply.answer:
            case Refusal(reason=reason) if isinstance(open_.order, Describe):
                # It takes no part: its agent would have ended, and nobody mends anything here.
                self._here.discard(asked.site)
            case Silence(reason=reason) | Refusal(reason=reason):
                self._here.discard(asked.site)
                self._down[asked.site] = reason
            case _ if _is_goodbye(open_.order):
                self._here.discard(asked.site)
        self._hear(open_.order, reply)

    def _reply(self, asked: Asked, open_: _Open, task: Any) -> Reply:
        errors = self._ray.exceptions
        try:
            answered: Parcel = self._ray.get(task)
        except errors.RayTaskError as error:  # a fault of the program, or of its data, that nothing there handles
            return self._ended(asked, open_, f"{type(error.cause).__name__}: {error.cause}", str(error))
        except errors.OutOfMemoryError as error:
            return self._ended(asked, open_, "the machine's memory ran out", str(error))
        except (errors.WorkerCrashedError, errors.NodeDiedError) as error:
            return self._ended(asked, open_, "", str(error))
        apart = answered.apart
        try:
            header = answer_in(answered.content)
        except RefusedError as error:
            return Reply(asked, Silence(error.message), open_.sent_bytes, answered.size)
        return Reply(
            asked,
            header,
            open_.sent_bytes,
            answered.size,
            content=answered.content,
            file=answered.file,
            sha256="" if apart is None else apart.sha256,
        )

    def _ended(self, asked: Asked, open_: _Open, why: str, details: str) -> Reply:
        """Return the silence of a hospital whose process ended."""
        round_ = getattr(open_.order, "round", 0)
        self._events.emit(
            "process_ended", site=asked.site, order=open_.order.kind, round=round_, reason=why, details=details
        )
        return Reply(asked, Silence(": ".join(filter(None, ("its process ended", why)))[:2000]), open_.sent_bytes, 0)

    def _hear(self, order: Order, reply: Reply) -> None:
        self._heard[reply.asked] = reply
        self._answered += 1
        self._progress(order, self._answered, self._asked)


def _is_goodbye(order: Order) -> bool:
    return isinstance(order, Finish) and not order.more


def _number(asked: Asked) -> str:
    return asked.id
