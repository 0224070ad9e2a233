"""One agent for each federation of a hospital: a lock in its state folder, and as whom the coordinator last knew it.

An agent that holds the lock knows that the one before it is dead: it may tell the coordinator so, which otherwise takes
a killed agent for connected until its heartbeats have been missed.
"""

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from fedpath.core.errors import ConfigError, StoppedError

_PATIENCE_S = 5.0  # a process that an agent started may hold the lock for a moment longer than the agent lived


class Presence:
    """What the file says; write-through. Made by `presence`."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    @property
    def node_id(self) -> int | None:
        """The coordinator's number for this site when an agent last connected; None if none has."""
        with contextlib.suppress(ValueError, KeyError, TypeError):  # empty, or cut off by a kill
            return int(json.loads(os.pread(self._handle, 4096, 0))["node_id"])
        return None

    @node_id.setter
    def node_id(self, node_id: int) -> None:
        content = json.dumps({"node_id": node_id}).encode()
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, content, 0)


@contextlib.contextmanager
def presence(state: Path, federation: str, stop: threading.Event) -> Iterator[Presence]:
    """Be the only agent of a state folder for a federation.

    Args:
        state: the folder.
        federation: its name.
        stop: set it to give up waiting for the lock.

    Raises:
        ConfigError: another agent works there.
        StoppedError: ``stop`` was set.
    """
    state.mkdir(parents=True, exist_ok=True)
    handle = os.open(state / f"agent-{federation}.json", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        waited = 0.0
        while not _locked(handle):
            if waited >= _PATIENCE_S:
                raise ConfigError(
                    f"{state}: another agent for federation '{federation}' works in this folder",
                    remedy="end it first (ps, or systemctl), or name another folder in 'state' of site.toml",
                )
            if stop.wait(0.1):
                raise StoppedError
            waited += 0.1
        yield Presence(handle)
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
