"""Live data for a page, as server-sent events.

What a page shows has sections, each a JSON text. Whoever connects is sent all of them, then each one that has changed;
lines of the log are sent once. A browser that lost the connection connects anew and is sent everything again, also by
a process that has been started meanwhile.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from pydantic_core import to_json

from fedpath.core.page.log import LogTail

MOST_READERS = 32
_LOOK_S = 0.4
_ALIVE_S = 15.0


def as_json(value: Any) -> str:
    """Return JSON that every browser reads, on one line: what is no finite number becomes null."""
    return to_json(value, inf_nan_mode="null").decode()


class Stream:
    """Sends sections to all who read.

    Args:
        look: returns the sections' texts by name; asked a few times a second while somebody reads.
        log: the lines that are sent as the section "log".
        over: set it to let all readers go.
    """

    def __init__(self, look: Callable[[], Awaitable[Mapping[str, str]]], log: LogTail, over: threading.Event) -> None:
        self._look, self._log, self._over = look, log, over
        self._readers = 0

    @property
    def is_full(self) -> bool:
        """Whether as many read as may."""
        return self._readers >= MOST_READERS

    async def read(self) -> AsyncIterator[str]:
        """Yield what one reader is sent, until it goes."""
        self._readers += 1
        try:
            yield "retry: 1000\n\n" + _event("clock", as_json(time.time()))
            sent: dict[str, str] = {}
            line, spoke = 0, time.monotonic()
            while not self._over.is_set():
                sections = await self._look()
                news = [_event(name, text) for name, text in sections.items() if sent.get(name) != text]
                sent |= sections
                if lines := self._log.after(line):
                    news.append(_event("log", as_json({"anew": line == 0, "lines": lines})))
                    line = lines[-1]["n"]
                if not news and time.monotonic() - spoke > _ALIVE_S:
                    news = [": \n\n"]
                if news:
                    spoke = time.monotonic()
                    yield "".join(news)
                await asyncio.sleep(_LOOK_S)
        finally:
            self._readers -= 1


def _event(name: str, text: str) -> str:
    return f"event: {name}\ndata: {text}\n\n"
