"""The page of one coordinator: what it keeps, what it shows, and when the registry is asked."""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from sqlalchemy.exc import DBAPIError

from fedpath.core.config import FederationConfig
from fedpath.core.errors import FedpathError
from fedpath.core.events import Event
from fedpath.core.page.log import LogTail, Words
from fedpath.core.page.stream import as_json
from fedpath.server.monitoring.watched import Watched
from fedpath.server.page.history import list_of_runs, sites
from fedpath.server.page.live import Live
from fedpath.server.registry import Registry

Kind = Literal["start", "serve"]
_REFRESH_S = 1.0
T = TypeVar("T")


class Page:
    """An event listener with a web page.

    Args:
        config: federation.toml of the coordinator.
        file: where that is.
        state: the coordinator's folder.
        kind: the command that serves: of one run, or of the queue.
        words: what an event says in the log.
        watched: the coordinator's parts, as they come to be: it knows who is connected.
    """

    def __init__(
        self,
        config: FederationConfig,
        file: Path,
        state: Path,
        kind: Kind,
        words: Words,
        watched: Watched | None = None,
    ) -> None:
        self.config, self.file, self.state, self.kind = config, file.absolute(), state, kind
        self.log, self.live = LogTail(words), Live(config.federation.sites)
        self.over = threading.Event()
        """Set when the page is not served any more."""
        self._watched = watched or Watched()
        self._registry: Registry | None = None
        self._one_at_a_time = asyncio.Lock()
        self._runs: list[dict[str, Any]] = []
        self._described: dict[str, dict[str, Any]] = {}
        self._online: set[str] | None = None
        self._trouble: str | None = None
        self._read = -_REFRESH_S
        self._shown: tuple[int, float, dict[str, str]] = (-1, -1.0, {})

    def __call__(self, event: Event) -> None:
        """Take an event in; in the thread of whoever it happened to."""
        self.log(event)
        self.live(event)

    async def with_registry(self, work: Callable[[Registry], T]) -> T:
        """Ask the registry something, in a thread of its own: a database that is slow holds nobody up.

        Raises:
            FedpathError: it cannot be reached, or what was asked cannot be done.
        """
        from starlette.concurrency import run_in_threadpool

        def ask() -> T:
            if self._registry is None:
                url = self.config.server.registry
                self._registry = Registry.open(self.state, None if url is None else url.get_secret_value())
            return work(self._registry)

        async with self._one_at_a_time:
            return await run_in_threadpool(ask)

    async def sections(self) -> Mapping[str, str]:
        """Return what is shown now, as JSON by section."""
        # Before it listens there may be no registry yet.
        if self.live.is_listening and time.monotonic() - self._read > _REFRESH_S:
            self._read = time.monotonic()
            await self._refresh()
        if self._shown[:2] != (self.live.version, self._read):
            self._shown = self.live.version, self._read, self._compose()
        return self._shown[2]

    def soon(self) -> None:
        """Ask the registry anew at the next look: something was changed."""
        self._read = -_REFRESH_S

    async def _refresh(self) -> None:
        from starlette.concurrency import run_in_threadpool

        name = self.config.federation.name
        self._online = await run_in_threadpool(self._who_is_online)
        try:
            self._runs, self._described = await self.with_registry(
                lambda registry: (list_of_runs(registry, name), sites(registry, name))
            )
        except FedpathError as error:
            self._trouble = error.message
        else:
            self._trouble = None

    def _who_is_online(self) -> set[str] | None:
        if (server := self._watched.server) is None:
            return None
        try:
            return server.online()
        except (OSError, FedpathError, DBAPIError):  # of the state's disk, which is why the coordinator ends
            return None

    def _seen(self, name: str, site: dict[str, Any]) -> dict[str, Any]:
        """Return a hospital as it is shown: what it is at, as long as it is connected."""
        seen = self._watched.server.traffic.seen.get(name) if self._watched.server is not None else None
        if self._online is None:
            return site
        if name in self._online:
            here = {"state": "here", "says": ""} if site["state"] in ("unknown", "away") else {}
            return site | here | {"heard": None}
        gone = {"state": "away", "says": site["says"] if site["state"] in ("lost", "refused") else "", "moving": None}
        return site | gone | {"heard": seen or site["heard"]}

    def _compose(self) -> dict[str, str]:
        now = self.live.sections()
        about = now["about"] | {
            "federation": self.config.federation.name,
            "kind": self.kind,
            "labels": self.config.task.labels,
            "registry": now["about"]["registry"] or self._trouble,
        }
        nobody: dict[str, Any] = {}
        merged = {
            name: self._seen(name, site) | {"about": self._described.get(name, nobody)}
            for name, site in now["sites"].items()
        }
        sections = {"about": about, "sites": merged, "live": now["live"], "runs": self._runs}
        return {section: as_json(value) for section, value in sections.items()}
