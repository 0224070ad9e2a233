"""Arrays in a safetensors file, written and read a block at a time: what a model of any size costs is the block.

The coordinator keeps updates as such files from the moment they arrive until they have counted. A file is mapped, not
read: a block of a float32 array is a view of the page cache, blocks of other types are decoded into a buffer. `release`
gives the pages back to the cache, so that the memory of a process that goes through many files stays flat.

On the wire and on disk an array is F32, F16, BF16 or I8. I8 stands for value / scale, with one scale an array in the
metadata (`SCALES`). Metadata may say that the arrays are changes against the model that came (`CHANGES`).
"""

import hashlib
import json
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from fedpath.core.errors import RefusedError

SCALES = "scales"
"""Metadata: JSON object, array name → scale of an I8 array."""
CHANGES = "changes"
"""Metadata: "true" where the arrays are changes."""
BLOCK = 1 << 16
"""Elements of a block that fits into a core's cache."""
_LENGTH = struct.Struct("<Q")
_TYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # the upper half of a float32
    "I8": np.dtype("<i1"),
}
_NAMES = {"float32": "F32", "float16": "F16", "int8": "I8"}

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Place:
    dtype: str
    shape: tuple[int, ...]
    values: NDArray[Any]
    """Flat, mapped from the file."""


class ArrayFile:
    """Named arrays of a safetensors file; use as a context manager, or `close` it.

    Raises:
        RefusedError: the file is not safetensors, or holds an array of another type than those above.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="np") as checked:  # the library checks offsets, sizes and overlaps
                self.metadata: dict[str, str] = checked.metadata() or {}
            with path.open("rb") as file:
                (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
                header = json.loads(file.read(length))
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            scales = json.loads(self.metadata.get(SCALES, "{}"))
        except (SafetensorError, struct.error, ValueError, OSError) as error:
            raise _unreadable(str(error)) from None
        header.pop("__metadata__", None)
        self._places: dict[str, _Place] = {}
        start = _LENGTH.size + length
        for name, entry in header.items():
            dtype = _TYPES.get(entry["dtype"])
            if dtype is None:
                raise _unreadable(f"array {name[:100]!r} is of type {entry['dtype']}")
            count = int(np.prod(entry["shape"], dtype=np.int64))
            values = np.frombuffer(self._map, dtype, count, start + entry["data_offsets"][0])
            self._places[name] = _Place(entry["dtype"], tuple(entry["shape"]), values)
        self._scales: dict[str, float] = scales

    @property
    def changes(self) -> bool:
        """Whether the arrays are changes against the model that the sender was given."""
        return self.metadata.get(CHANGES) == "true"

    @property
    def names(self) -> set[str]:
        """The arrays' names."""
        return set(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return an array's shape."""
        return self._places[name].shape

    def dtype(self, name: str) -> str:
        """Return an array's type on disk: F32, F16, BF16 or I8."""
        return self._places[name].dtype

    def block(self, name: str, start: int, stop: int, buffer: F32) -> F32:
        """Return elements ``start`` to ``stop`` of the flattened array as float32.

        Args:
            name: of the array.
            start: first element.
            stop: one past the last.
            buffer: at least ``stop - start`` elements; used for arrays that are not float32.

        Returns:
            A read-only view of the file, or of ``buffer``.
        """
        place = self._places[name]
        values = place.values[start:stop]
        if place.dtype == "F32":
            return values
        out = buffer[: len(values)]
        if place.dtype == "BF16":
            np.left_shift(values, 16, out=out.view(np.uint32), dtype=np.uint32, casting="unsafe")
        else:
            np.copyto(out, values)
            if place.dtype == "I8":
                np.multiply(out, np.float32(self._scales.get(name, 1.0)), out=out)
        return out

    def array(self, name: str) -> F32:
        """Return a whole array as float32: a view where it is stored so."""
        place = self._places[name]
        buffer = np.empty(0 if place.dtype == "F32" else place.values.size, np.float32)
        return self.block(name, 0, place.values.size, buffer).reshape(place.shape)

    def release(self) -> None:
        """Give the pages that have been read back: the views stay valid and are read again from the cache."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Let go of the file; a view that is still in use keeps it mapped."""
        self._places.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_arrays(file: BinaryIO, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> str:
    """Write arrays as a safetensors file without a copy of them in memory; return the SHA-256 of its bytes.

    Args:
        file: opened for writing.
        arrays: float32, float16 or int8; in any order, they are written in that of their names.
        metadata: of the file.
    """
    digest = hashlib.sha256()
    for piece in _pieces(arrays, metadata or {}):
        digest.update(piece)
        file.write(piece)
    return digest.hexdigest()


def _pieces(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name in sorted(arrays):
        array = arrays[name]
        ends = offset + array.nbytes
        header[name] = {
            "dtype": _NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, ends],
        }
        offset = ends
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format's own alignment
    yield _LENGTH.pack(len(text))
    yield text
    for name in sorted(arrays):
        array = arrays[name]
        # As in `pack`: memory as the format has it, whatever the strides and byte order.
        plain = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
        yield plain.reshape(-1).view(np.uint8).data


def _unreadable(reason: str) -> RefusedError:
    return RefusedError(
        f"its arrays are not readable: {reason}", remedy="run the same version of fedpath on both sides"
    )
