"""The arrays of answers, as they arrive: a file a site, hashed on the way, that goes on where it stopped.

A site may send while an order to it is open, and no more than that order can ask for. What has arrived stays when the
connection breaks and when either side is killed: a site that carries out the same order again sends the same bytes, and
only those that are missing. One file a site at most: a site that begins another one gives the earlier one up.
"""

import hashlib
import os
import shutil
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from fedpath.core.exchange.wire import Apart

_PART = ".part"
_ANSWER = "answer.safetensors"


class NotWantedError(Exception):
    """No order to this site is open that such a file could answer."""


class TooLargeError(Exception):
    """It is larger than the answer to any open order can be."""


class SupersededError(Exception):
    """The site has come back on another connection: what this one brings does not count any more."""


class DamagedError(Exception):
    """All bytes are there, and they are others than was said. They are gone."""


@dataclass(slots=True)
class _Slot:
    """What a site is sending."""

    limits: dict[object, int] = field(default_factory=dict)
    """Bytes that the answer to each open order may have."""
    apart: Apart | None = None
    path: Path = Path()
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    offset: int = 0
    whole: bool = False
    holder: object = None
    """The connection whose bytes count."""
    lock: threading.Lock = field(default_factory=threading.Lock)


class Incoming:
    """Files that sites send.

    Args:
        folder: of nobody else; what is in it of these sites and not whole is gone on with.
        sites: that may send.
    """

    def __init__(self, folder: Path, sites: Collection[str]) -> None:
        self._folder = folder
        self._slots = {site: _Slot() for site in sites}
        for path in folder.glob("*/*"):
            if path.parent.name not in self._slots or path.suffix != _PART:
                path.unlink()

    def expect(self, site: str, order: object, limit: int) -> None:
        """Let a site send a file in answer to an order, of at most ``limit`` bytes."""
        slot = self._slots[site]
        with slot.lock:
            slot.limits[order] = limit

    def expect_no_more(self, site: str, order: object) -> None:
        """End what `expect` began. What has arrived stays: the site may be asked the same again."""
        slot = self._slots[site]
        with slot.lock:
            slot.limits.pop(order, None)

    def begin(self, site: str, apart: Apart) -> "Upload":
        """Go on with a file, or begin it. Whatever else this site is sending does not count from here on.

        Raises:
            NotWantedError: see there.
            TooLargeError: see there.
        """
        slot = self._slots[site]
        with slot.lock:
            if not slot.limits:
                raise NotWantedError
            if apart.size > max(slot.limits.values()):
                raise TooLargeError
            if slot.apart != apart:
                self._find(slot, site, apart)
            slot.holder = object()
            return Upload(slot, slot.holder)

    def claim(self, site: str, apart: Apart) -> Path | None:
        """Return a file that has arrived; it is the caller's, until the site's next one. None where it has not."""
        slot = self._slots[site]
        with slot.lock:
            if slot.apart != apart or not slot.whole:
                return None
            answer = slot.path.with_name(_ANSWER)
            slot.path.replace(answer)
            slot.apart = slot.holder = None
            return answer

    def clear(self) -> None:
        """Remove all: the run is over."""
        for slot in self._slots.values():
            with slot.lock:
                slot.apart = slot.holder = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _find(self, slot: _Slot, site: str, apart: Apart) -> None:
        """Turn to a file: what is there of it is read again, others of this site are removed."""
        folder = self._folder / site
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{apart.sha256}{_PART}"
        for other in folder.glob(f"*{_PART}"):
            if other != path:
                other.unlink()
        digest, offset = hashlib.sha256(), 0
        if path.exists() and path.stat().st_size <= apart.size:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256")
                offset = file.tell()
        else:
            path.write_bytes(b"")
        slot.apart, slot.path, slot.digest, slot.offset = apart, path, digest, offset
        slot.whole = offset == apart.size and digest.hexdigest() == apart.sha256
        if offset == apart.size and not slot.whole:
            _start_again(slot)


class Upload:
    """One connection's hold on the file that a site is sending."""

    def __init__(self, slot: _Slot, holder: object) -> None:
        self._slot, self._holder = slot, holder
        self._file: BinaryIO | None = None

    @property
    def offset(self) -> int:
        """How many bytes are there."""
        return self._slot.offset

    def append(self, pieces: Sequence[bytes]) -> None:
        """Write what has arrived. With the last byte, the file is on disk for good when this returns.

        Raises:
            NotWantedError: the order is not open any more.
            SupersededError: see there.
            DamagedError: see there.
            OSError: the disk is full.
        """
        slot = self._slot
        with slot.lock:
            if slot.holder is not self._holder or slot.apart is None:
                raise SupersededError
            if not slot.limits:
                raise NotWantedError
            if self._file is None:
                self._file = slot.path.open("r+b", buffering=0)
                self._file.seek(slot.offset)
            for piece in pieces:
                _write(self._file, piece, slot.offset)
                slot.digest.update(piece)
                slot.offset += len(piece)
            if slot.offset == slot.apart.size:
                os.fsync(self._file.fileno())
                if slot.digest.hexdigest() != slot.apart.sha256:
                    _start_again(slot)
                    raise DamagedError
                slot.whole = True

    def close(self) -> None:
        """Let go of it."""
        if self._file is not None:
            self._file.close()


def _write(file: BinaryIO, piece: bytes, offset: int) -> None:
    """Write all of a piece, or none of it."""
    view, done = memoryview(piece), 0
    try:
        while done < len(view):
            done += file.write(view[done:])
    except OSError:
        file.truncate(offset)
        file.seek(offset)
        raise


def _start_again(slot: _Slot) -> None:
    slot.path.write_bytes(b"")
    slot.digest, slot.offset, slot.whole = hashlib.sha256(), 0, False
