"""Hospitals in this process, as a coordinator knows them (`fedpath.server.talk.Talk`): real orders, real workers and
real answers, each through its bytes, without a network."""

from collections.abc import Callable, Collection, Iterable, Mapping

from fedpath.client.agent.worker import Worker
from fedpath.core.config import SiteConfig
from fedpath.core.errors import FedpathError
from fedpath.core.events import EventLog
from fedpath.core.exchange.messages import Answer, Finish, Order, Refusal, Refuse, answer_in, decode_order, encode
from fedpath.core.exchange.wire import Arrays
from fedpath.server.talk import Asked, Reply, Silence


class InProcess:
    """Hospitals that work when they are listened to.

    Args:
        names: of the hospitals that are there.
        config_of: returns a hospital's site.toml; asked when it gets its first order.
        federation: its name.
    """

    def __init__(self, names: Iterable[str], config_of: Callable[[str], SiteConfig], federation: str) -> None:
        self._here, self._config_of, self._federation = set(names), config_of, federation
        self._workers: dict[str, Worker] = {}
        self._open: dict[Asked, bytes] = {}
        self._posted = 0

    def online(self) -> set[str]:
        """Return the hospitals that are there: they have not heard the goodbye."""
        return set(self._here)

    def post(self, orders: Mapping[str, Order], arrays: Arrays, ttl_s: float) -> list[Asked]:
        """Queue orders, as over the network."""
        posted = []
        for site, order in orders.items():
            self._posted += 1
            asked = Asked(site, f"{self._posted:06d}")
            self._open[asked] = encode(order, arrays)
            posted.append(asked)
        return posted

    def next_reply(self, asked: Collection[Asked], timeout_s: float) -> Reply | None:
        """Return the answer of the first of them."""
        one = next(iter(asked))
        content = self._open.pop(one)
        if one.site not in self._here:
            return Reply(one, Silence("it is not connected"), len(content), 0)
        received = encode(*self.answer(one.site, *decode_order(content)))
        return Reply(one, answer_in(received), len(content), len(received), content=received)

    def drop(self, asked: Asked) -> None:
        """Forget an order."""
        self._open.pop(asked, None)

    def answer(self, site: str, order: Order, arrays: Arrays) -> tuple[Answer, Arrays]:
        """Return what a hospital's agent says to an order."""
        if site not in self._workers:
            self._workers[site] = Worker(self._config_of(site), federation=self._federation, events=EventLog())
        if isinstance(order, Refuse) or (isinstance(order, Finish) and not order.more):
            self._here.discard(site)
        try:
            return self._workers[site].carry_out(order, arrays)
        except FedpathError as error:
            self._here.discard(site)
            return Refusal(reason=error.message), {}
