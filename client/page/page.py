"""The page of one hospital's agent: what it keeps, shows and answers."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

from fedpath.client.audit import AUDIT_FILE
from fedpath.client.page.departures import Departures
from fedpath.client.page.live import Live
from fedpath.core.config import SiteConfig
from fedpath.core.events import Event
from fedpath.core.page.log import LogTail, Words
from fedpath.core.page.stream import as_json


class Page:
    """An event listener with a web page.

    Args:
        config: site.toml.
        stop: is set when the agent is to stop, whoever asked for it.
        ask_to_stop: does what Ctrl-C does once.
        words: what an event says in the log.
    """

    def __init__(
        self, config: SiteConfig, stop: threading.Event, ask_to_stop: Callable[[], None], words: Words
    ) -> None:
        self.config, self.ask_to_stop = config, ask_to_stop
        self._stop = stop
        self.over = threading.Event()
        """Set when the page is not served any more."""
        self.log, self.live = LogTail(words), Live()
        self._left = Departures(config.state / AUDIT_FILE)
        self._shown: tuple[tuple[int, bool, int], dict[str, str]] = ((-1, False, 0), {})

    def __call__(self, event: Event) -> None:
        """Take an event in; in the thread of whoever it happened to."""
        self.log(event)
        self.live(event)

    async def sections(self) -> Mapping[str, str]:
        """Return what is shown now, as JSON by section."""
        from starlette.concurrency import run_in_threadpool

        left = await run_in_threadpool(self._left.look)
        key = self.live.version, self._stop.is_set(), left["messages"]
        if self._shown[0] != key or left["broken"]:
            self._shown = key, self._compose(left)
        return self._shown[1]

    def _compose(self, left: dict[str, Any]) -> dict[str, str]:
        now = self.live.sections()
        about = now["about"] | {"site": self.config.site.name}
        if self._stop.is_set():
            about["connection"] = "stopping"
        return {name: as_json(value) for name, value in (now | {"about": about, "left": left}).items()}
