"""Arrays in a safetensors file, written and read a block at a time: what a model of any size costs is the block.

The coordinator keeps updates as such files from the moment they arrive until they have counted. A block is read into a
buffer, and decoded there: the memory of a process that goes through many files is that of its buffers. Small files are
mapped instead, and a block of one is a view, so that thousands of them take no file descriptors.

On the wire and on disk an array is F32, F16, BF16 or I8. I8 stands for value / scale, with one scale an array in the
metadata (`SCALES`). Metadata may say that the arrays are changes against the model that came (`CHANGES`).
"""

import hashlib
import json
import math
import mmap
import os
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
BLOCK = 1 << 17
"""Elements of a block that fits into a core's cache and is worth a call to read it."""
SMALL = 1 << 22
"""Bytes of a file that is mapped."""
_LENGTH = struct.Struct("<Q")
_TYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # the upper half of a float32
    "I8": np.dtype("<i1"),
}
_NAMES = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int8": "I8"}
_LARGEST_SCALE = float(np.finfo(np.float32).max) / 128
"""With a larger one a value could leave float32."""

F32 = NDArray[np.float32]


class WireArrays(dict[str, NDArray[Any]]):
    """Arrays in the types of the wire, by "group/name", and what has to be said about them.

    numpy has no bfloat16: uint16 stands for it here, and for nothing else.

    Args:
        arrays: float32, float16, uint16 or int8.
        metadata: of the file, or the message, that they are written to.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
        super().__init__(arrays)
        self.metadata = dict(metadata)


@dataclass(frozen=True, slots=True)
class _Place:
    dtype: str
    shape: tuple[int, ...]
    size: int
    """Numbers in it."""
    offset: int
    """Of its bytes in the file."""


class ArrayFile:
    """Named arrays of a safetensors file; use as a context manager, or `close` it.

    Raises:
        RefusedError: the file is not safetensors, holds an array of another type than those above, or an I8 array
            without a scale that is a positive number.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="np") as checked:  # the library checks offsets, sizes and overlaps
                self.metadata: dict[str, str] = checked.metadata() or {}
            with path.open("rb") as file:
                (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
                header = json.loads(file.read(length))
                small = path.stat().st_size <= SMALL
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if small else None
                self._file = None if small else os.dup(file.fileno())
            scales = json.loads(self.metadata.get(SCALES, "{}"))
        except (SafetensorError, struct.error, ValueError, OSError, RecursionError) as error:
            raise _unreadable(str(error)) from None
        header.pop("__metadata__", None)
        self._places: dict[str, _Place] = {}
        start = _LENGTH.size + length
        for name, entry in header.items():
            dtype = _TYPES.get(entry["dtype"])
            if dtype is None:
                raise _unreadable(f"array {name[:100]!r} is of type {entry['dtype']}")
            size = math.prod(entry["shape"])
            offset = start + entry["data_offsets"][0]
            self._places[name] = _Place(entry["dtype"], tuple(entry["shape"]), size, offset)
        self._scales = _checked_scales(scales, {name for name, place in self._places.items() if place.dtype == "I8"})

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

    def place(self, name: str) -> slice | None:
        """Return which bytes of the file are an array's float32; None where it has none to be read in place."""
        place = self._places[name]
        if place.dtype != "F32" or place.offset % 4:
            return None
        return slice(place.offset, place.offset + 4 * place.size)

    def in_file(self, name: str, start: int) -> tuple[int, int] | None:
        """Return where element ``start`` of an array of float32 is to be read: the file's descriptor, and the offset.

        None where the file is mapped, or holds the array in another type.
        """
        place = self._places[name]
        if self._file is None or place.dtype != "F32":
            return None
        return self._file, place.offset + 4 * start

    def block(self, name: str, start: int, stop: int, buffer: F32) -> F32:
        """Return elements ``start`` to ``stop`` of the flattened array as float32.

        Args:
            name: of the array.
            start: first element.
            stop: one past the last.
            buffer: at least ``stop - start`` elements.

        Returns:
            A view of ``buffer``, or a read-only one of a file that is mapped.
        """
        place = self._places[name]
        out = buffer[: min(stop, place.size) - start]
        values = self._read(place, start, out)
        if place.dtype == "F32":
            return values
        if place.dtype == "BF16":
            np.left_shift(values, 16, out=out.view(np.uint32), dtype=np.uint32, casting="unsafe")
        elif place.dtype == "F16" and values.flags.writeable:  # not of a file that is mapped
            import torch  # which does eight at once where numpy takes one after the other

            torch.from_numpy(out).copy_(torch.from_numpy(values))
        else:
            np.copyto(out, values)
            if place.dtype == "I8":
                np.multiply(out, self._scales[name], out=out)
        return out

    def array(self, name: str) -> F32:
        """Return a whole array as float32."""
        place = self._places[name]
        return self.block(name, 0, place.size, np.empty(place.size, np.float32)).reshape(place.shape)

    def close(self) -> None:
        """Let go of the file; a view that is still in use keeps it mapped."""
        self._places.clear()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _read(self, place: _Place, start: int, out: F32) -> NDArray[Any]:
        """Return numbers as they are stored: float32 in ``out``, others in memory of their own."""
        dtype = _TYPES[place.dtype]
        offset = place.offset + start * dtype.itemsize
        if self._map is not None:
            return np.frombuffer(self._map, dtype, len(out), offset)
        if self._file is None:
            raise ValueError(f"{self.path} is closed")
        values: NDArray[Any] = out if place.dtype == "F32" else np.empty(len(out), dtype)
        view, done = values.view(np.uint8).data, 0
        while done < len(view):
            read = os.preadv(self._file, [view[done:]], offset + done)
            if read == 0:
                raise _unreadable("the file was cut while it was read")
            done += read
        return values

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self.close()

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
        arrays: float32, float16, int8, or uint16 for bfloat16; in any order, they are written in that of their names.
        metadata: of the file; by default what belongs to the arrays, if they are `WireArrays`.
    """
    digest = hashlib.sha256()
    for piece in _pieces(arrays, metadata_of(arrays) if metadata is None else metadata):
        digest.update(piece)
        file.write(piece)
    return digest.hexdigest()


def as_bytes(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes that `write_arrays` writes."""
    return b"".join(_pieces(arrays, metadata))


def metadata_of(arrays: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """Return what is to be written beside arrays; nothing beside plain ones."""
    return arrays.metadata if isinstance(arrays, WireArrays) else {}


def write_unhashed(
    file: BinaryIO, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> None:
    """As `write_arrays`, for whom the hash of the file is of no use."""
    for piece in _pieces(arrays, metadata or {}):
        file.write(piece)


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


def _checked_scales(scales: object, names: set[str]) -> dict[str, np.float32]:
    """Return the scales of the I8 arrays ``names``, as a stranger stated them.

    Raises:
        RefusedError: one is missing, or of no such array, or not a positive number that a float32 holds.
    """
    if not isinstance(scales, dict):
        raise _unreadable(f"the scales are {type(scales).__name__}, not an object")
    if odd := sorted(scales.keys() ^ names):
        what = "has no scale" if odd[0] in names else "is not int8 and has a scale"
        raise _unreadable(f"array {odd[0][:100]!r} {what}")
    for name, scale in scales.items():
        number = isinstance(scale, int | float) and not isinstance(scale, bool)
        if not (number and 0 < scale <= _LARGEST_SCALE and np.float32(scale) > 0):
            raise _unreadable(f"the scale of array {name[:100]!r} is {str(scale)[:100]}, not a positive float32")
    return {name: np.float32(scale) for name, scale in scales.items()}


def _unreadable(reason: str) -> RefusedError:
    return RefusedError(
        f"its arrays are not readable: {reason}", remedy="run the same version of fedpath on both sides"
    )
