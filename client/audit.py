"""The hospital's log of everything that left it: one JSON line a message, each with the hash of the line before.

The line is on disk before the message leaves. Changing or removing a line breaks the chain from there on, which
`verify` finds; the last hash can be noted elsewhere to find a removed end as well.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedpath.core.errors import DataError

AUDIT_FILE = "audit.jsonl"
_START = "0" * 64


@dataclass(frozen=True, slots=True)
class Record:
    """One message that left."""

    number: int
    at: str
    to: str
    run: str
    kind: str
    round: int
    size: int
    """Bytes of the message."""
    sha256: str
    holds: str
    """What the message holds, in words."""
    hash: str
    """Of this line; the next line repeats it."""


class AuditLog:
    """Appends to a site's audit log.

    Args:
        path: the log; continued where it ends.

    Raises:
        DataError: the chain of the existing log is broken.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        records, self._last = _read(path)
        self._count = len(records)
        path.parent.mkdir(parents=True, exist_ok=True)

    def record(self, content: bytes, *, to: str, run: str, kind: str, round_: int, holds: str) -> None:
        """Write down that ``content`` is about to leave."""
        line: dict[str, Any] = {
            "number": self._count + 1,
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "to": to,
            "run": run,
            "kind": kind,
            "round": round_,
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "holds": holds,
            "previous": self._last,
        }
        line["hash"] = _hash(line)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._count, self._last = self._count + 1, line["hash"]


def verify(path: Path) -> list[Record]:
    """Return what left, in order, after checking the whole chain.

    Raises:
        DataError: naming the first line that does not fit.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[list[Record], str]:
    records: list[Record] = []
    last = _START
    if not path.exists():
        return records, last
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
            stated = line.pop("hash")
            fits = stated == _hash(line) and line.pop("previous") == last and line["number"] == number
            record = Record(**line, hash=stated)
        except (ValueError, KeyError, TypeError, AttributeError):
            fits = False
        if not fits:
            raise DataError(
                f"{path}, line {number}: the audit log was changed or damaged there",
                remedy="keep the file as evidence, tell your data protection officer, and move it away",
            )
        records.append(record)
        last = stated
    return records, last


def _hash(line: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(line, sort_keys=True).encode()).hexdigest()
