"""The open round on disk: what has happened in it, one JSON line each, synced before anything follows from it.

```
asked       a site was sent the model
answered    its update is checked and kept; it counts
refused     its update or its refusal does not count, and why
lost        it went away; it is asked again when it is back
late        it has not answered in time
aggregated  the new model is computed and kept
evaluated   what the sites said of the model the round started from is counted
published   the model has its names, `last` and perhaps `best`
```

A coordinator that is killed reads the journal of the round that was open: updates that were answered are on disk and
are not asked for again, so none is lost and none counts twice. A line that a kill cut off is as if it had not happened.
Each line carries a checksum, for patients' counts are taken from here.
"""

import json
import os
import time
import zlib
from pathlib import Path
from typing import Any, Literal, get_args

from fedpath.core.errors import DataError
from fedpath.core.files import naming
from fedpath.server.kept import REMEDY

State = Literal["asked", "answered", "refused", "lost", "late", "aggregated", "evaluated", "published"]


_STATES = get_args(State)


class Journal:
    """Of one round.

    Args:
        path: where it is, or will be.

    Raises:
        DataError: a line before the last one is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.lines: list[dict[str, Any]] = []
        """What happened so far."""
        self.replaces_damaged = False
        """Whether there was one that was damaged and is set aside."""
        if path.exists():
            self._read()

    def note(self, state: State, **values: Any) -> None:
        """Write down what happened; on return it is on disk."""
        line = {"state": state, "at": time.time(), **values}
        new = not self._path.exists()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with naming(self._path), self._path.open("ab") as file:
            file.write(json.dumps(line | {"sum": _sum(line)}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if new:
            _sync(self._path.parent)
        self.lines.append(line)

    def started_from(self) -> str | None:
        """Return the hash of the model that the round started from; None for a round that has not begun."""
        return next((line["base"] for line in self.lines if line["state"] == "asked"), None)

    def forget(self) -> None:
        """Begin anew: what is here is of another model."""
        self._path.unlink(missing_ok=True)
        self.lines = []

    def _read(self) -> None:
        *whole, rest = self._path.read_bytes().split(b"\n")
        for number, text in enumerate(whole, 1):
            try:
                line = json.loads(text)
                if line.pop("sum") != _sum(line) or line["state"] not in _STATES:
                    raise ValueError
            except (ValueError, KeyError, TypeError, AttributeError):
                raise DataError(f"{self._path}, line {number}: is damaged", remedy=REMEDY) from None
            self.lines.append(line)
        if rest:  # cut off by a kill
            with self._path.open("r+b") as file:
                file.truncate(sum(len(text) + 1 for text in whole))


def _sum(line: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(line).encode())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
