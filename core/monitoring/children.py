"""What child processes tell the long-lived one they work for: events, over a Unix socket in its state folder.

```
daemon   Mailbox(folder, name, events)   STATE/<name>.sock, for its own user alone; its path in FEDPATH_EVENTS
child    tell("trained_by", rank=0, …)   one datagram an event
```

A child never waits and never fails for it: where nobody listens, or the daemon is busy, what it tells is dropped, and
the next that gets through says how many were. So children tell sums, not differences. A child that is killed leaves
nothing behind; a daemon that is killed leaves the socket's name, which the next one replaces.

A Unix socket's path may have 107 bytes and a state folder's may have more, so both sides name the socket through an
open descriptor of its folder. What a datagram says is checked like anything that comes from outside: a few kinds of
events with numbers and short words in them, nothing else.
"""

import contextlib
import json
import os
import re
import socket
import stat
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fedpath.core.events import EventLog

VARIABLE = "FEDPATH_EVENTS"
"""Environment variable with the socket's path: children inherit it."""
KINDS = frozenset({"trainer", "encoder", "combiner"})
"""Events that a child may tell."""
_LARGEST = 4096
"""Bytes of a datagram."""
_LARGEST_NUMBER = 2**63
_WORD = re.compile(r"[a-z_]{1,40}")
_LOOK_S = 0.5


class Mailbox:
    """Where a daemon's children tell what they know; use as a context manager.

    Args:
        folder: of the daemon; nobody else's socket of this name is there, for it holds the folder's lock or port.
            Where its file system has no sockets, as some shares have none, one of its own in the system's folder for
            temporary files takes its place.
        name: of the socket.
        events: where what is told goes on to.
    """

    def __init__(self, folder: Path, name: str, events: EventLog) -> None:
        self._name, self._events = f"{name}.sock", events
        self.path = folder.absolute() / self._name
        """Where the socket is."""
        self._elsewhere: Path | None = None
        self.counts: Counter[str] = Counter(taken=0, refused=0)
        """Datagrams by what became of them."""
        self._over = threading.Event()
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._hear, name="children", daemon=True)
        self._before: str | None = None

    def __enter__(self) -> Self:
        try:
            self._socket = _bound(self.path)
        except OSError:
            self._elsewhere = Path(tempfile.mkdtemp(prefix="fedpath-"))
            self.path = self._elsewhere / self._name
            self._socket = _bound(self.path)
        self._socket.settimeout(_LOOK_S)
        self._thread.start()
        self._before, os.environ[VARIABLE] = os.environ.get(VARIABLE), str(self.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = self._before
        self._over.set()
        self._thread.join()
        self.path.unlink(missing_ok=True)
        if self._elsewhere is not None:
            self._elsewhere.rmdir()
        if self._socket is not None:
            self._socket.close()

    def _hear(self) -> None:
        assert self._socket is not None
        over = False
        while not over:
            over = self._over.is_set()  # once more after that: what was told before the end is heard
            try:
                content = self._socket.recv(_LARGEST + 1, socket.MSG_DONTWAIT if over else 0)
            except TimeoutError:
                continue
            except BlockingIOError:
                return
            over = False
            told = _read(content)
            self.counts["refused" if told is None else "taken"] += 1
            if told is not None:
                kind, values = told
                # A disk that is full: whoever has work to do there says so, and listeners have heard this all the same.
                with contextlib.suppress(OSError):
                    self._events.emit(kind, **values)


def _bound(path: Path) -> socket.socket:
    """Return a new socket of a name, in the place of one that was left there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        # From its first moment on: a umask is the whole process's, a socket's own mode is what bind gives it.
        os.fchmod(opened.fileno(), stat.S_IRUSR | stat.S_IWUSR)
        with _short(path) as short:
            opened.bind(short)
    except OSError:
        opened.close()
        raise
    return opened


def _read(content: bytes) -> tuple[str, dict[str, Any]] | None:
    """Return the event that a datagram tells; None where it is none that a child may tell."""
    try:
        values = json.loads(content) if len(content) <= _LARGEST else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or values.get("kind") not in KINDS:
        return None
    kind = values.pop("kind")
    fine = all(_WORD.fullmatch(name) and name != "at" and _is_plain(value) for name, value in values.items())
    return (kind, values) if fine and len(values) <= 20 else None


def _is_plain(value: object) -> bool:
    if isinstance(value, int | float):
        return abs(value) < _LARGEST_NUMBER  # not so of NaN
    return isinstance(value, str) and _WORD.fullmatch(value) is not None


class _Dropped:
    """How many events of this process did not get through since the last one that did."""

    count = 0


def tell(kind: str, **values: float | str) -> bool:
    """Tell the daemon that this process works for, if there is one, what has happened; return whether it was told.

    Args:
        kind: one of `KINDS`.
        values: numbers, and words of `_WORD`'s form: never a path, a slide or a patient.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return False
    content = json.dumps({"kind": kind, "pid": os.getpid(), "dropped": _Dropped.count, **values}).encode()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours, _short(Path(path)) as short:
            ours.setblocking(False)
            ours.sendto(content, short)
    except OSError:  # nobody listens, or not fast enough: what it does matters more than that it is told
        _Dropped.count += 1
        return False
    _Dropped.count = 0
    return True


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """Yield a short name of a socket: through its folder's descriptor where the system has such names."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        through = Path(f"/proc/self/fd/{folder}")
        yield str(through / path.name if through.exists() else path)
    finally:
        os.close(folder)
