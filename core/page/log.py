"""The last lines of a role's log, as its page shows them: each event that is worth a line, in words."""

import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedpath.core.events import Event, EventReader

LINES = 300
_LONGEST = 1000
_TAIL = 256 * 1024
Words = Callable[[Event], str | None]
"""Returns what an event says to people, or None."""


class LogTail:
    """Keeps the last lines; an event listener.

    Args:
        words: what an event says.
    """

    def __init__(self, words: Words) -> None:
        self._words, self._lock = words, threading.Lock()
        self._lines: deque[dict[str, Any]] = deque(maxlen=LINES)
        self._number = 0

    def __call__(self, event: Event) -> None:
        """Keep an event's line, if it has one."""
        if (text := self._words(event)) is None:
            return
        with self._lock:
            self._number += 1
            self._lines.append({"n": self._number, "at": event.at, "kind": event.kind, "text": text[:_LONGEST]})

    def take_up(self, path: Path) -> None:
        """Begin with what the processes before this one wrote to the file of events."""
        for event in EventReader(path, tail=_TAIL).new():
            try:
                self(event)
            except (KeyError, TypeError, ValueError, AttributeError):
                continue  # a line of another version of fedpath: its values have other names

    def after(self, number: int) -> list[dict[str, Any]]:
        """Return the lines that came after the one of a number; all for 0."""
        with self._lock:
            return [line for line in self._lines if line["n"] > number]
