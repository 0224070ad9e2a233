"""Decoded tiles, each decoded once while it is needed: least recently used ones go first."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from threading import Lock

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


class TileCache:
    """A bounded store of tiles that several threads ask at once.

    Two threads that ask for one tile get one decoding: the second waits for the first. A tile that cannot be decoded is
    remembered as such, so that patches around it do not try again.
    """

    def __init__(self, most_bytes: int) -> None:
        """Keep up to ``most_bytes`` of pixels."""
        self._most = most_bytes
        self._held = 0
        self._lock = Lock()
        self._tiles: OrderedDict[Hashable, Future[Pixels]] = OrderedDict()

    def get(self, key: Hashable, decode: Callable[[], Pixels]) -> Pixels:
        """Return the tile ``key``, decoded by ``decode`` if it is not here; not to be written to.

        Raises:
            Exception: whatever ``decode`` raised, now or before.
        """
        with self._lock:
            found = self._tiles.get(key)
            if found is not None:
                self._tiles.move_to_end(key)
            else:
                mine: Future[Pixels] = Future()
                self._tiles[key] = mine
        if found is not None:
            return found.result()
        try:
            tile = decode()
        except BaseException as error:
            mine.set_exception(error)
            raise
        tile.flags.writeable = False
        mine.set_result(tile)
        with self._lock:
            self._held += tile.nbytes
            self._shrink()
        return tile

    def clear(self) -> None:
        """Let all tiles go."""
        with self._lock:
            self._tiles.clear()
            self._held = 0

    def _shrink(self) -> None:
        for key, tile in list(self._tiles.items()):
            if self._held <= self._most:
                return
            # One that is being decoded has a thread waiting for it; one that failed takes no room.
            if tile.done() and tile.exception() is None:
                del self._tiles[key]
                self._held -= tile.result().nbytes
