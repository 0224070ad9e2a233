"""`fedpath client join`: connect, carry out orders until the run is over, write down what leaves."""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedpath.client.agent.app import build_client_app, order_in, reply_to
from fedpath.client.agent.flower import FleetConnection
from fedpath.client.agent.kit import Kit, load_kit
from fedpath.client.agent.preflight import wait_for_coordinator
from fedpath.client.agent.presence import Presence, presence
from fedpath.client.agent.transfer import Carrier, RunOverError, Transfer
from fedpath.client.agent.worker import Worker
from fedpath.client.audit import AUDIT_FILE, AuditLog
from fedpath.client.monitoring.causes import data_cause, order_cause
from fedpath.client.monitoring.watched import Watched
from fedpath.core.clinical.standard import ClinicalStatistics
from fedpath.core.config import SiteConfig
from fedpath.core.errors import (
    ConfigError,
    ConnectionFailedError,
    DataError,
    FedpathError,
    RefusedError,
    StoppedError,
)
from fedpath.core.events import EventLog
from fedpath.core.exchange.encoding import in_words
from fedpath.core.exchange.groups import CONTROL, group_of
from fedpath.core.exchange.messages import (
    Answer,
    Description,
    Encoded,
    Finish,
    Order,
    Refusal,
    Refuse,
    Update,
    encode,
)
from fedpath.core.exchange.parcel import Parcel
from fedpath.core.exchange.wire import Arrays
from fedpath.core.monitoring.children import Mailbox
from fedpath.core.monitoring.pulse import Pulse
from fedpath.core.training.engines.launch import TrainingProcessError

# Asked often while something is likely to come, seldom while the other sites are training.
_SHORTEST_WAIT_S, _LONGEST_WAIT_S, _GROWTH = 0.02, 0.5, 1.2

_PATIENCE_S = 300.0
"""How long a coordinator that has gone away is tried again."""
_ARRAYS = "arrays"
"""Kind of the audit log's line for a file that travels apart from its message."""
_DESCRIPTION = "how features were made, counts of patients and slides"


@dataclass(slots=True)
class Outcome:
    """How a site's part in a run ended."""

    finished: bool = False
    refused: str | None = None


def join(
    config: SiteConfig,
    kit_folder: Path,
    events: EventLog,
    stop: threading.Event,
    *,
    wait_s: float = 0.0,
    stay: bool = False,
    watched: Watched | None = None,
) -> Outcome:
    """Take part in one run of the federation, or, with ``stay``, in all that come.

    Args:
        config: site.toml.
        kit_folder: the kit of this site.
        events: where progress is reported.
        stop: set it to leave; the order in hand is finished first.
        wait_s: how long to wait for a coordinator that cannot be reached yet; with ``stay``, as long as it takes.
        stay: stay when a run is over or has sent this site away, also while the coordinator is away.
        watched: is filled in, for whoever watches.

    Raises:
        ConfigError: kit and site.toml do not belong together, or another agent works in this site's folder.
        ConnectionFailedError: the coordinator cannot be reached or does not accept this site.
        StoppedError: ``stop`` was set.
        FedpathError: this site could not do what was asked; the coordinator has been told without details.
    """
    kit = load_kit(kit_folder)
    _check_identity(config, kit, kit_folder)
    watched = watched or Watched()
    with (
        presence(config.state, kit.federation, stop) as present,
        Mailbox(config.state, f"agent-{kit.federation}", events) as watched.mailbox,
    ):
        return _join(config, kit, present, events, stop, wait_s, stay, watched.pulse)


def _join(
    config: SiteConfig,
    kit: Kit,
    present: Presence,
    events: EventLog,
    stop: threading.Event,
    wait_s: float,
    stay: bool,
    pulse: Pulse,
) -> Outcome:
    """Take part, as the only agent of this site."""
    audit = AuditLog(config.state / AUDIT_FILE)
    worker = Worker(config, federation=kit.federation, events=events, stays=stay)
    patience_s = math.inf if stay else _PATIENCE_S
    wait_for_coordinator(
        kit.address,
        kit.authority,
        wait_s=math.inf if stay else wait_s,
        stop=stop,
        waiting=lambda reason: events.emit("waiting", reason=reason, wait_s=None if stay else wait_s),
    )
    away = partial(_tell_away, events)

    def moving(way: str, done: int, total: int) -> None:
        events.emit("moving", way=way, done=done, total=total)

    transfer = Transfer(kit, config.state / "transfer" / kit.federation, stop=stop, away=away, progress=moving)
    site = _Site(worker, audit, kit.address, events, transfer, stay=stay)
    with FleetConnection(kit, stop=stop, away=away, presence=present, patience_s=patience_s, pulse=pulse) as connection:
        events.emit("joined", federation=kit.federation, address=kit.address)
        site.serve(connection, stop)
    if not (site.outcome.finished or site.outcome.refused):
        raise StoppedError
    transfer.clear()
    return site.outcome


def _tell_away(events: EventLog, reason: str | None) -> None:
    if reason is None:
        events.emit("coordinator_back")
    else:
        events.emit("coordinator_away", reason=reason)


class _Site:
    """The loop of one run, or of all: fetch an order, carry it out, answer."""

    def __init__(
        self,
        worker: Worker,
        audit: AuditLog,
        address: str,
        events: EventLog,
        carrier: Carrier,
        *,
        stay: bool = False,
    ) -> None:
        self._audit, self._address, self._events, self._stay = audit, address, events, stay
        self._carrier = carrier
        self._app: ClientApp = build_client_app(worker.carry_out, self._note_arrival, self._note_departure, carrier)
        self._order: Order | None = None
        self._parcel = Parcel(b"")
        self._leaving: dict[str, Any] = {}
        self.outcome = Outcome()

    def serve(self, connection: FleetConnection, stop: threading.Event) -> None:
        """Answer orders until the coordinator says the run is over, refuses this site, or ``stop`` is set.

        A site that stays goes on in the first two cases, and when it could not do what was asked: that is one run's
        matter, and said here.
        """
        wait = _SHORTEST_WAIT_S
        self._events.emit("phase", phase="waiting")
        while not (stop.is_set() or self.outcome.finished or self.outcome.refused):
            try:
                message = connection.fetch()
                if message is None:
                    stop.wait(wait)
                    wait = min(wait * _GROWTH, _LONGEST_WAIT_S)
                    continue
                wait = _SHORTEST_WAIT_S
                try:
                    self._answer(connection, message)
                finally:
                    self._events.emit("phase", phase="waiting")
            except RunOverError:
                self._events.emit("order_dropped")

    def _answer(self, connection: FleetConnection, message: Message) -> None:
        started = time.monotonic()
        context = Context(message.metadata.run_id, connection.node_id, {}, RecordDict(), {})
        try:
            reply = self._app(message, context)
        except TrainingProcessError as error:
            # Nothing is wrong here that was not so before: it stays for the next order.
            self._send(connection, self._refusal(message, error), started)
            self._events.emit("training_failed", reason=error.message, remedy=error.remedy, cause="process")
            return
        except (ConnectionFailedError, StoppedError):  # of the order's arrays: nobody is there to be told
            raise
        except FedpathError as error:
            self._send(connection, self._refusal(message, error), started)
            if not self._stay:
                raise
            about = data_cause(error) if isinstance(error, DataError) else None
            self._events.emit(
                "order_failed", error=error.message, remedy=error.remedy, cause=order_cause(error), about=about
            )
            return
        try:
            self._send(connection, reply, started)
        except RunOverError:
            # A site that has the final model is done, whether or not the coordinator has heard that it has.
            if not (isinstance(self._order, Finish) and not self._order.more):
                raise
            self._events.emit("order_dropped")
        match self._order:
            case _ if self._stay:
                pass
            case Finish(more=False):
                self.outcome.finished = True
            case Refuse(reason=reason):
                self.outcome.refused = reason

    def _send(self, connection: FleetConnection, reply: Message, started: float) -> None:
        self._events.emit("phase", phase="sending")
        if self._parcel.file is not None and self._parcel.apart is not None:
            self._carrier.send(self._parcel.file, self._parcel.apart)
        connection.answer(reply, time.monotonic() - started)
        self._events.emit("sent", **self._leaving)

    def _note_arrival(self, order: Order, size: int, fetches: bool) -> None:
        """Tell what is asked."""
        round_ = getattr(order, "round", None)
        self._events.emit("order", order=order.kind, run=order.facts.run, round=round_, bytes=size)
        if fetches:
            self._events.emit("phase", phase="fetching")

    def _note_departure(self, parcel: Parcel, order: Order, answer: Answer, arrays: Arrays) -> None:
        """Write down what is about to leave, before it does: the file of its arrays first, if it has one."""
        self._order, self._parcel = order, parcel
        round_ = getattr(order, "round", 0)
        self._leaving = {"what": answer.kind, "round": round_, "bytes": parcel.size}
        note = partial(self._audit.record, to=self._address, run=order.facts.run, round_=round_)
        with self._telling_of_audit():
            if parcel.apart is not None:
                note(parcel.apart, kind=_ARRAYS, holds=f"the arrays of the {answer.kind} in the next line")
            note(parcel.content, kind=answer.kind, holds=_in_words(answer, arrays))

    @contextmanager
    def _telling_of_audit(self) -> Iterator[None]:
        """Tell that what leaves cannot be written down, so that it does not leave."""
        try:
            yield
        except (OSError, DataError) as error:
            self._events.emit("audit_failed", error=str(error))
            raise

    def _refusal(self, message: Message, error: FedpathError) -> Message:
        """Say that it did not work; the reason only where it is about the order and not about this hospital's data."""
        match error:
            case RefusedError(message=reason):
                pass
            case TrainingProcessError(how=how):
                reason = f"the process that trains {how}, twice; the site's own log says more"
            case _:
                reason = "the site could not do it; its own log says why"
        refusal = Refusal(reason=reason[:2000])
        content = encode(refusal)
        try:
            order, _, _ = order_in(message)
        except RefusedError:
            self._parcel = Parcel(content)
            self._leaving = {"what": refusal.kind, "round": 0, "bytes": len(content)}
            with self._telling_of_audit():
                self._audit.record(content, to=self._address, run="", kind=refusal.kind, round_=0, holds=reason)
        else:
            self._note_departure(Parcel(content), order, refusal, {})
        return reply_to(message, content)


def _check_identity(config: SiteConfig, kit: Kit, folder: Path) -> None:
    if config.site.name != kit.site:
        raise ConfigError(
            f"{folder}: the kit is for site '{kit.site}', site.toml is for '{config.site.name}'",
            remedy="use the kit of this site",
        )


def _in_words(answer: Answer, arrays: Arrays) -> str:
    """Return what an answer holds, for the audit log's reader."""
    match answer:
        case Update():
            sent = {name: array for name, array in arrays.items() if not name.startswith(CONTROL)}
            groups = ", ".join(sorted({group_of(name) for name in sent}))
            numbers = sum(array.size for array in sent.values())
            parameters = f"{numbers} parameters ({groups}) as {in_words(arrays)}"
            control = sum(array.size for name, array in arrays.items() if name.startswith(CONTROL))
            mean = f"the change of the mean gradient of {control} of them (SCAFFOLD), " if control else ""
            return f"{parameters}, {mean}patient counts, training loss, validation figures"
        case Description(clinical=ClinicalStatistics(patients=patients, fields=fields)):
            told = ", ".join(sorted(fields)) or "no field"
            return f"{_DESCRIPTION}, counts and sums over {patients} patients with clinical data ({told})"
        case Encoded(slides=slides):
            return f"how {slides} slides were encoded again, and how long it took"
        case Refusal(reason=reason):
            return f"a refusal: {reason}"
        case _:
            return {
                "description": _DESCRIPTION,
                "evaluation": "figures over one split",
                "receipt": "nothing but the confirmation",
            }[answer.kind]
