"""What left this hospital, for its page: sums and the last lines of the audit log, checked each time it has grown."""

from collections import Counter
from pathlib import Path
from typing import Any

from fedpath.client.audit import INTERRUPTED, Record, examine
from fedpath.core.errors import DataError

LINES = 100


class Departures:
    """Reads a hospital's audit log.

    Args:
        path: the log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._read: dict[str, Any] = _summed([])

    def look(self) -> dict[str, Any]:
        """Return what left; the same object while nothing more has."""
        try:
            about = self._path.stat()
        except FileNotFoundError:
            return self._read
        if (now := (about.st_size, about.st_mtime_ns)) != self._seen:
            self._seen = now
            try:
                self._read = _summed(examine(self._path).records)
            except DataError as error:
                self._read = self._read | {"broken": f"{error.message}: {error.remedy}"}
        return self._read


def _summed(records: list[Record]) -> dict[str, Any]:
    left = [record for record in records if record.kind != INTERRUPTED]
    messages, sizes = Counter(record.kind for record in left), Counter[str]()
    for record in left:
        sizes[record.kind] += record.size
    names = ("number", "at", "run", "kind", "round", "size", "holds", "sha256")
    return {
        "messages": len(left),
        "bytes": sum(record.size for record in left),
        "kinds": [{"kind": kind, "messages": messages[kind], "bytes": sizes[kind]} for kind in sorted(messages)],
        "last": [{name: getattr(record, name) for name in names} for record in reversed(records[-LINES:])],
        "broken": None,
    }
