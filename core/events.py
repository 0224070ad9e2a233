"""What happens, as it happens: one JSON line an event in a file, and the same to all who listen.

Both roles report through this, so that a terminal, the demo's live view and later a dashboard read one thing. Events of
a site stay at the site. The file is appended to and flushed line by line; a reader may follow it. A process that is
killed may leave half a line, which readers pass over.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpath.core.files import naming

Listener = Callable[["Event"], None]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened: `kind` with named values."""

    kind: str
    at: float
    """Seconds since the epoch."""
    values: dict[str, Any]


class EventLog:
    """Writes events to a file and hands them to listeners.

    Args:
        path: file to append to; None keeps nothing.
        listeners: called with every event, in the caller's thread, one after the other.
    """

    def __init__(self, path: Path | None = None, *listeners: Listener) -> None:
        self.path = path
        self._listeners = listeners
        self._file = None
        self._lock = threading.Lock()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8", buffering=1)
            if not _ends_with_a_line(path):
                self._file.write("\n")

    def emit(self, kind: str, **values: Any) -> None:
        """Record an event now."""
        event = Event(kind, time.time(), values)
        line = json.dumps({"kind": kind, "at": event.at, **values}) + "\n"
        try:
            with self._lock:
                if self._file is not None:
                    with naming(Path(self._file.name)):
                        self._file.write(line)
        finally:  # a disk that is full is no reason for nobody to hear what has happened
            for listener in self._listeners:
                listener(event)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


class EventReader:
    """Follows an event file another process writes; each call returns the complete lines that are new.

    Args:
        path: the file.
        tail: begin with what is in its last so many bytes; None for all of it.
    """

    def __init__(self, path: Path, *, tail: int | None = None) -> None:
        self._path = path
        self._offset = 0 if tail is None or not path.exists() else max(0, path.stat().st_size - tail)

    def new(self) -> list[Event]:
        """Return the events written since the last call; none while the file does not exist."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [event for event in map(_parse, whole.splitlines()) if event is not None]


def _parse(line: bytes) -> Event | None:
    """Return the event of a line; None for a line that a killed process did not finish."""
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return Event(values.pop("kind"), values.pop("at"), values)


def _ends_with_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
