"""One order carried out at one simulated hospital: what a Ray task does.

A hospital has no process of its own and keeps nothing in memory: each order is carried out by a fresh `Worker` in
whichever process is free, from the hospital's files, as after a restart of its agent. So a process holds one hospital
at a time, however many there are.
"""

import os
import signal
from pathlib import Path

from fedpath.client.agent.worker import Worker
from fedpath.core.config import SiteConfig
from fedpath.core.errors import FedpathError
from fedpath.core.events import Event, EventLog
from fedpath.core.exchange.messages import Answer, Refusal, decode_order, encode
from fedpath.core.exchange.parcel import Parcel, write_parcel
from fedpath.core.exchange.wire import Arrays

EVENTS_FILE = "events.jsonl"


def answer(
    site: SiteConfig, federation: str, order: bytes, arrays: Arrays, file: Path, die_at: str | None = None
) -> Parcel:
    """Carry out an order.

    What goes wrong at the hospital is told in full, other than in a real federation: here both sides are one.

    Args:
        site: its site.toml.
        federation: it is part of.
        order: without the arrays, which all hospitals share.
        arrays: that go along; they are not written to.
        file: where the arrays of a large answer go.
        die_at: kind of the event of the hospital's log at which its process is killed.
    """

    def listen(event: Event) -> None:
        if event.kind == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    events = EventLog(site.state / EVENTS_FILE, listen)
    try:
        header, trained = _carry_out(Worker(site, federation=federation, events=events), order, arrays)
    except FedpathError as error:
        return Parcel(encode(Refusal(reason=str(error)[:2000])))
    finally:
        events.close()
    return write_parcel(header, trained, file)


def _carry_out(worker: Worker, order: bytes, arrays: Arrays) -> tuple[Answer, Arrays]:
    return worker.carry_out(decode_order(order)[0], arrays)
