"""A coordinator and its sites in one process: real orders, real workers and real answers, without a network."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from federation import write_cohort

from fedpath.client.agent.worker import Worker
from fedpath.core.config import load_site
from fedpath.core.errors import FedpathError
from fedpath.core.events import EventLog
from fedpath.core.exchange.messages import (
    Answer,
    Finish,
    Order,
    Refusal,
    Refuse,
    decode_answer,
    decode_order,
    encode,
)
from fedpath.core.exchange.wire import Arrays
from fedpath.server.conversation import Conversation, Reply, Silence


class Killed(BaseException):
    """Ends the coordinator where it stands, as a signal would: nothing handles it."""


class Sites(Conversation):
    """The sites, as a coordinator hears them. Each order and answer passes through its bytes.

    Args:
        folder: every site has a folder below it, with site.toml.
        names: of the sites that are there.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder, self._here = folder, set(names)
        self._workers: dict[str, Worker] = {}
        self.heard: list[tuple[str, str]] = []
        """Site and kind of every order, in order."""
        self.told: dict[str, str] = {}
        """What sites that were refused were told."""

    def come(self, site: str) -> None:
        """Let a site join; it is a fresh process, which knows nothing of earlier orders."""
        self._workers.pop(site, None)
        self._here.add(site)

    def leave(self, site: str) -> None:
        """Let a site go away."""
        self._here.discard(site)

    def online(self) -> set[str]:
        """The sites that are there."""
        return set(self._here)

    def ask(
        self, sites: Iterable[str], order: Order, arrays: Arrays, timeout_s: float, stop: threading.Event
    ) -> Iterator[Reply]:
        """As a conversation over the network."""
        content = encode(order, arrays)
        for site in sorted(sites):
            if site not in self._here:
                yield Reply(site, Silence("it is not connected"), {}, len(content), 0)
                continue
            self.heard.append((site, order.kind))
            answer, trained = self.answer(site, *decode_order(content))
            received = encode(answer, trained)
            yield Reply(site, *decode_answer(received), len(content), len(received))

    def answer(self, site: str, order: Order, arrays: Arrays) -> tuple[Answer, Arrays]:
        """What a site's agent does with an order."""
        if site not in self._workers:
            config = load_site(self._folder / site / "site.toml")
            self._workers[site] = Worker(config, federation="test", events=EventLog())
        match order:
            case Refuse(reason=reason):
                self.told[site] = reason
                self.leave(site)
            case Finish(more=False):
                self.leave(site)
        try:
            return self._workers[site].carry_out(order, arrays)
        except FedpathError as error:
            self.leave(site)
            return Refusal(reason=error.message), {}


def write_sites(folder: Path, names: Iterable[str]) -> None:
    """Write the cohorts and site.toml of some sites."""
    for index, site in enumerate(names):
        write_cohort(folder / site, site, seed=index, patients=12)
        (folder / site / "site.toml").write_text(
            f'[site]\nname = "{site}"\n[data]\nmanifest = "manifest.csv"\nfeatures = "features"\n'
        )
