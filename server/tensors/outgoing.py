"""The arrays of open orders, each set written once to a file that the sites fetch.

A file is there as long as an order that speaks of it is open, and the newest one until another is written: the next
order often has the same model. Nothing of it is needed after a restart; every order is sent again then.
"""

import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import BinaryIO

from fedpath.core.exchange.parcel import write_file
from fedpath.core.exchange.wire import Apart, Arrays


class Outgoing:
    """Files that are lent to sites.

    Args:
        folder: of nobody else; what is in it is removed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lent: Counter[tuple[str, str]] = Counter()
        """Open orders by file and site."""
        self._lock = threading.Lock()
        self._newest: tuple[object, Apart] | None = None
        self.clear()

    def write(self, arrays: Arrays, hashes: object) -> Apart:
        """Write arrays to a file, or return the one that is there.

        Args:
            arrays: of an order.
            hashes: that say which arrays they are; None where nothing does.
        """
        if self._newest is not None and hashes is not None and self._newest[0] == hashes:
            return self._newest[1]
        temporary = self._folder / "new"
        apart = write_file(arrays, temporary)
        with self._lock:
            temporary.replace(self._path(apart.sha256))
            before, self._newest = self._newest, (hashes, apart)
            if before is not None:
                self._remove_if_idle(before[1].sha256)
        return apart

    def lend(self, apart: Apart, site: str) -> None:
        """Let a site fetch a file."""
        with self._lock:
            self._lent[apart.sha256, site] += 1

    def take_back(self, apart: Apart, site: str) -> None:
        """End what `lend` began."""
        with self._lock:
            self._lent[apart.sha256, site] -= 1
            self._lent += Counter()  # drops what is 0
            self._remove_if_idle(apart.sha256)

    def open(self, apart: Apart, site: str) -> BinaryIO | None:
        """Open a file for a site that it is lent to; None for others."""
        with self._lock:
            if not self._lent[apart.sha256, site]:
                return None
            path = self._path(apart.sha256)
            return path.open("rb") if path.stat().st_size == apart.size else None

    def clear(self) -> None:
        """Remove all."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._newest = None

    def _remove_if_idle(self, sha256: str) -> None:
        if self._newest is not None and self._newest[1].sha256 == sha256:
            return
        if not any(lent == sha256 for lent, _ in self._lent):
            self._path(sha256).unlink(missing_ok=True)

    def _path(self, sha256: str) -> Path:
        return self._folder / f"{sha256}.safetensors"
