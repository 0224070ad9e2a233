"""Decoded tiles, each decoded once while it is needed: least recently used ones go first."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


class _Tile:
    """A tile that is decoded, is being decoded (then its lock is held), or cannot be."""

    __slots__ = ("decoding", "error", "pixels")

    def __init__(self) -> None:
        self.decoding = Lock()
        self.pixels: Pixels | None = None
        self.error: BaseException | None = None


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
        self._tiles: OrderedDict[Hashable, _Tile] = OrderedDict()

    def get(self, key: Hashable, decode: Callable[[], Pixels]) -> Pixels:
        """Return the tile ``key``, decoded by ``decode`` if it is not here; not to be written to.

        Raises:
            Exception: whatever ``decode`` raised, now or before.
        """
        with self._lock:
            tile = self._tiles.get(key)
            mine = tile is None
            if tile is None:
                tile = self._tiles[key] = _Tile()
                tile.decoding.acquire()
            else:
                self._tiles.move_to_end(key)
        if mine:
            self._fill(tile, decode)
        elif tile.pixels is None and tile.error is None:
            with tile.decoding:
                pass
        if tile.pixels is None:
            assert tile.error is not None
            raise tile.error
        return tile.pixels

    def clear(self) -> None:
        """Let all tiles go."""
        with self._lock:
            self._tiles.clear()
            self._held = 0

    def _fill(self, tile: _Tile, decode: Callable[[], Pixels]) -> None:
        try:
            pixels = decode()
            pixels.flags.writeable = False
            tile.pixels = pixels
        except BaseException as error:
            tile.error = error
            raise
        finally:
            tile.decoding.release()
        with self._lock:
            self._held += pixels.nbytes
            while self._held > self._most:
                self._drop_oldest()

    def _drop_oldest(self) -> None:
        """Let the oldest tile go; not one that is being decoded, for which threads wait, nor one that takes no room."""
        key, tile = next((key, tile) for key, tile in self._tiles.items() if tile.pixels is not None)
        assert tile.pixels is not None
        del self._tiles[key]
        self._held -= tile.pixels.nbytes
