"""The hospital's log of everything that left it: one JSON line a message, each with the hash of the line before.

The line is on disk before the message leaves. Changing or removing a line breaks the chain from there on, which
`verify` finds; the last hash can be noted elsewhere to find a removed end as well. A line at the end that a crash left
unfinished is no tampering, and its message did not leave: the next line says that it was there.
"""

import fcntl
import hashlib
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from fedpath.core.errors import DataError
from fedpath.core.exchange.wire import Apart
from fedpath.core.files import naming

AUDIT_FILE = "audit.jsonl"
INTERRUPTED = "interrupted"
"""Kind of a line that stands for no message, but for one that was cut off."""
_START = "0" * 64


@dataclass(frozen=True, slots=True)
class Record:
    """One message that left (or, of kind `INTERRUPTED`, one whose line a crash cut off and which did not leave)."""

    number: int
    at: str
    to: str
    run: str
    kind: str
    round: int
    size: int
    """Bytes of the message, or of the file."""
    sha256: str
    holds: str
    """What the message holds, in words."""
    hash: str
    """Of this line; the next line repeats it."""


@dataclass(frozen=True, slots=True)
class History:
    """A whole chain."""

    records: list[Record]
    unfinished: int
    """Bytes of a line at the end that a crash cut off; the next record will note it."""


class AuditLog:
    """Appends to a site's audit log; several agents of one hospital may share it.

    Args:
        path: the log; continued where it ends.

    Raises:
        DataError: the chain of the existing log is broken.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._count, self._last, self._size = 0, _START, -1
        path.parent.mkdir(parents=True, exist_ok=True)
        verify(path)

    def record(self, content: bytes | Apart, *, to: str, run: str, kind: str, round_: int, holds: str) -> None:
        """Write down that ``content`` is about to leave: a message, or a file that travels apart from its message.

        Raises:
            DataError: the chain was broken since the last record.
        """
        with naming(self._path), self._path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if file.seek(0, os.SEEK_END) != self._size:  # the first time, and when another agent wrote meanwhile
                self._catch_up(file)
            apart = content if isinstance(content, Apart) else Apart(_sha256(content), len(content))
            self._append(file, apart, to, run, kind, round_, holds)

    def _append(self, file: BinaryIO, left: Apart, to: str, run: str, kind: str, round_: int, holds: str) -> None:
        line: dict[str, Any] = {
            "number": self._count + 1,
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "to": to,
            "run": run,
            "kind": kind,
            "round": round_,
            "size": left.size,
            "sha256": left.sha256,
            "holds": holds,
            "previous": self._last,
        }
        line["hash"] = _hash(line)
        file.write(json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
        self._count, self._last, self._size = self._count + 1, line["hash"], file.tell()

    def _catch_up(self, file: BinaryIO) -> None:
        """Read the chain to its end, and mend an end that a crash left."""
        file.seek(0)
        content = file.read()
        records, torn = _read(self._path, content)
        self._count, self._last = len(records), records[-1].hash if records else _START
        if torn:
            file.truncate(len(content) - len(torn))
            holds = f"nothing: a line was cut off by a crash before its message left; its {len(torn)} bytes are removed"
            self._append(file, Apart(_sha256(torn), 0), "", "", INTERRUPTED, 0, holds)
        elif content and not content.endswith(b"\n"):
            file.write(b"\n")


def verify(path: Path) -> list[Record]:
    """Return what left, in order, after checking the whole chain; an absent log is an empty one.

    Raises:
        DataError: naming the first line that does not fit.
    """
    return examine(path).records


def examine(path: Path) -> History:
    """Like `verify`, and say whether a crash cut off the last line.

    Raises:
        DataError: naming the first line that does not fit.
    """
    records, torn = _read(path, path.read_bytes() if path.exists() else b"")
    return History(records, len(torn))


def _read(path: Path, content: bytes) -> tuple[list[Record], bytes]:
    """Return the chain's records and the unfinished line at its end, if there is one."""
    records: list[Record] = []
    *lines, end = content.split(b"\n")
    for number, text in enumerate([*lines, end] if end else lines, start=1):
        try:
            line = json.loads(text)
        except ValueError:
            if number > len(lines):
                return records, end
            raise _broken(path, number) from None
        try:
            stated = line.pop("hash")
            last = records[-1].hash if records else _START
            fits = stated == _hash(line) and line.pop("previous") == last and line["number"] == number
            record = Record(**line, hash=stated)
        except (KeyError, TypeError, AttributeError):
            fits = False
        if not fits:
            raise _broken(path, number)
        records.append(record)
    return records, b""


def _broken(path: Path, number: int) -> DataError:
    return DataError(
        f"{path}, line {number}: the audit log was changed or damaged there",
        remedy="keep the file as evidence, tell your data protection officer, and move it away",
    )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _hash(line: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(line, sort_keys=True).encode()).hexdigest()
