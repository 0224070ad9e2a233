"""A coordinator and its sites in one process: real orders, real workers and real answers, without a network."""

from collections.abc import Collection, Iterable, Mapping, Sequence
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
    answer_in,
    decode_order,
    encode,
)
from fedpath.core.exchange.wire import Arrays
from fedpath.server.talk import Asked, Reply, Silence


class Killed(BaseException):
    """Ends the coordinator where it stands, as a signal would: nothing handles it."""


class Sites:
    """The sites, as a coordinator hears them. Each order and answer passes through its bytes.

    Args:
        folder: every site has a folder below it, with site.toml.
        names: of the sites that are there.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder, self._here = folder, set(names)
        self._workers: dict[str, Worker] = {}
        self._open: dict[Asked, bytes] = {}
        self._posted = 0
        self.heard: list[tuple[str, str]] = []
        """Site and kind of every order, in order."""
        self.told: dict[str, str] = {}
        """What sites that were refused were told."""

    def come(self, site: str) -> None:
        """Let a site join; it is a fresh process, which knows nothing of earlier orders."""
        self._workers.pop(site, None)
        self._here.add(site)

    def return_all(self, sites: Iterable[str]) -> None:
        """Let sites that have left be there again: the same processes, which have their data in memory."""
        self._here |= set(sites)

    def leave(self, site: str) -> None:
        """Let a site go away."""
        self._here.discard(site)

    def online(self) -> set[str]:
        """The sites that are there."""
        return set(self._here)

    def post(self, orders: Mapping[str, Order], arrays: Arrays, ttl_s: float) -> list[Asked]:
        """As over the network; the sites work when they are listened to."""
        posted = []
        for site, order in orders.items():
            self._posted += 1
            asked = Asked(site, str(self._posted))
            self._open[asked] = encode(order, arrays)
            posted.append(asked)
        return posted

    def next_reply(self, asked: Collection[Asked], timeout_s: float) -> Reply | None:
        """The answer of the first of them."""
        one = next(iter(asked))
        content = self._open.pop(one)
        if one.site not in self._here:
            return Reply(one, Silence("it is not connected"), len(content), 0)
        order, arrays = decode_order(content)
        self.heard.append((one.site, order.kind))
        answer, trained = self.answer(one.site, order, arrays)
        received = encode(answer, trained)
        return Reply(one, answer_in(received), len(content), len(received), content=received)

    def drop(self, asked: Asked) -> None:
        """Forget an order."""
        self._open.pop(asked, None)

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


def write_sites(folder: Path, names: Iterable[str], patients: int = 12) -> None:
    """Write the cohorts and site.toml of some sites."""
    for index, site in enumerate(names):
        write_cohort(folder / site, site, seed=index, patients=patients)
        (folder / site / "site.toml").write_text(
            f'[site]\nname = "{site}"\n[data]\nmanifest = "manifest.csv"\nfeatures = "features"\n'
        )
