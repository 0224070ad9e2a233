"""Give models and bags to processes without copying them through pipes.

A value is pickled; the contents of its tensors go beside it, each storage once: those that are mapped from a file are
mapped again from there, others are written into a file that exists in memory only. That has no name, so nothing is left
behind however a process ends, and it does not count against /dev/shm, which is small in containers. A process that
writes to a tensor that it was given writes to a copy of the page.
"""

import io
import mmap
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.storage import TypedStorage, UntypedStorage

from fedpath.core.errors import DataError

_ALIGNED = 64
_PRIVATE_WRITABLE = "rw-p"


def memory_file(name: str) -> int:
    """Return the descriptor of a new, empty file in memory."""
    return os.memfd_create(f"fedpath-{name}", os.MFD_CLOEXEC)


def pack(value: object, file: int) -> int:
    """Write ``value`` into a memory file, and return where its pickle starts.

    Its tensors must be on the CPU and must not change before they are unpacked.

    Raises:
        Exception: whatever pickle says of an object that it cannot take.
    """
    body = io.BytesIO()
    with os.fdopen(os.dup(file), "wb") as stream:
        _Packer(body, stream).dump(value)
        start = stream.tell()
        stream.write(body.getbuffer())
    return start


def unpack(file: int, start: int) -> Any:
    """Return the value that ``pack`` wrote.

    Raises:
        DataError: a file whose contents are mapped is not what it was.
    """
    content = mmap.mmap(file, 0, access=mmap.ACCESS_COPY)
    return _Unpacker(io.BytesIO(content[start:]), content).load()


def views(file: int, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that all processes with ``file`` share, of the shapes and types of ``like``."""
    places, end = {}, 0
    for name, tensor in like.items():
        places[name] = end
        end += -(-tensor.numel() * tensor.element_size() // _ALIGNED) * _ALIGNED
    os.ftruncate(file, max(1, end))
    content = mmap.mmap(file, 0)
    return {
        name: torch.frombuffer(content, dtype=tensor.dtype, count=tensor.numel(), offset=places[name]).view(
            tensor.shape
        )
        for name, tensor in like.items()
        if tensor.numel()
    }


class _Packer(pickle.Pickler):
    """Writes storages beside the pickle."""

    def __init__(self, body: io.BytesIO, contents: io.BufferedWriter) -> None:
        super().__init__(body, protocol=pickle.HIGHEST_PROTOCOL)
        self._contents = contents
        self._places: dict[int, tuple[object, ...]] = {}
        self._kept: list[UntypedStorage] = []
        self._mappings = _mappings()

    def persistent_id(self, value: Any) -> Any:
        """Return where a storage's contents are; None for anything else."""
        if not isinstance(value, TypedStorage):
            return None
        storage = value._untyped_storage
        if storage.device.type != "cpu":
            raise pickle.PicklingError(f"a tensor is on {storage.device}")
        key = storage._cdata
        if key not in self._places:
            self._kept.append(storage)  # or its address could be another's before the end
            self._places[key] = self._mapped(storage) or self._written(storage)
        return value.dtype, *self._places[key]

    def _written(self, storage: UntypedStorage) -> tuple[object, ...]:
        self._contents.write(bytes(-self._contents.tell() % _ALIGNED))
        place = self._contents.tell()
        if storage.nbytes():
            self._contents.write(torch.empty(0, dtype=torch.uint8).set_(storage).numpy().data)
        return None, place, storage.nbytes()

    def _mapped(self, storage: UntypedStorage) -> tuple[object, ...] | None:
        """Return path, offset, size and the file's identity if the storage is part of a file as it lies on disk."""
        first, size = storage.data_ptr(), storage.nbytes()
        for start, end, offset, inode, path in self._mappings:
            if size and start <= first and first + size <= end:
                try:
                    found = Path(path).stat()
                except OSError:
                    return None
                return (path, offset + first - start, size, inode) if found.st_ino == inode else None
        return None


class _Unpacker(pickle.Unpickler):
    """Finds storages beside the pickle."""

    def __init__(self, body: io.BytesIO, content: mmap.mmap) -> None:
        super().__init__(body)
        self._content = content
        self._storages: dict[object, UntypedStorage] = {}

    def persistent_load(self, pid: Any) -> TypedStorage:
        """Return the storage that ``persistent_id`` described."""
        dtype, *place = pid
        key = tuple(place)
        if key not in self._storages:
            self._storages[key] = self._open(*place)
        return TypedStorage(wrap_storage=self._storages[key], dtype=dtype, _internal=True)  # type: ignore[no-untyped-call]

    def _open(self, path: str | None, place: int, size: int, inode: int = 0) -> UntypedStorage:
        if size == 0:
            return torch.empty(0).untyped_storage()
        if path is None:
            return torch.frombuffer(self._content, dtype=torch.uint8, count=size, offset=place).untyped_storage()
        before = place % mmap.ALLOCATIONGRANULARITY
        with Path(path).open("rb") as file:
            if os.fstat(file.fileno()).st_ino != inode:
                raise DataError(f"{path}: replaced while it was in use", remedy="start the training again")
            content = mmap.mmap(file.fileno(), before + size, access=mmap.ACCESS_COPY, offset=place - before)
        return torch.frombuffer(content, dtype=torch.uint8, count=size, offset=before).untyped_storage()


def _mappings() -> list[tuple[int, int, int, int, str]]:
    """Return (start, end, offset, inode, path) of each part of memory that shows a file as it lies on disk.

    Private parts that can be written may differ from it.
    """
    line = re.compile(r"(\w+)-(\w+) (\S{4}) (\w+) \S+ (\d+) +(/.*)")
    found = filter(None, map(line.fullmatch, Path("/proc/self/maps").read_text().splitlines()))
    return [
        (int(start, 16), int(end, 16), int(offset, 16), int(inode), path)
        for start, end, rights, offset, inode, path in (match.groups() for match in found)
        if rights != _PRIVATE_WRITABLE and not path.startswith(("/memfd:", "/dev/"))
    ]
