"""A message as it travels: whole where its arrays are small, else a header and a file of arrays apart from it.

A transport of messages copies each several times and keeps it in a database. That suits a few kilobytes; a model goes
by itself, from file to file (`fedpath.core.exchange.transfer`), and the message says which file is meant.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpath.core.exchange.messages import Answer, Order
from fedpath.core.exchange.stored import ArrayFile, write_arrays
from fedpath.core.exchange.wire import Apart, Arrays, pack

LARGE = 1 << 20
"""Bytes of arrays from which on they are a file."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """What is handed to the transport."""

    content: bytes
    """The message: header and small arrays, or header and which file holds them."""
    file: Path | None = None
    apart: Apart | None = None
    """Of the file."""

    @property
    def size(self) -> int:
        """Bytes that travel."""
        return len(self.content) + (0 if self.apart is None else self.apart.size)


def is_large(arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Return whether arrays travel apart from their message."""
    return sum(array.nbytes for array in arrays.values()) >= LARGE


def write_file(arrays: Mapping[str, NDArray[Any]], path: Path, metadata: Mapping[str, str] | None = None) -> Apart:
    """Write arrays as a file of `fedpath.core.exchange.stored`; the folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        sha256 = write_arrays(file, arrays, metadata)
        return Apart(sha256, file.tell())


def write_parcel(
    header: Order | Answer,
    arrays: Mapping[str, NDArray[Any]],
    file: Path,
    metadata: Mapping[str, str] | None = None,
) -> Parcel:
    """Return a message as it travels.

    Args:
        header: of the message.
        arrays: that go along.
        file: where large ones are written to.
        metadata: of that file.
    """
    text = header.model_dump_json()
    if not is_large(arrays):
        return Parcel(pack(text, arrays))
    apart = write_file(arrays, file, metadata)
    return Parcel(pack(text, apart=apart), file, apart)


def map_arrays(path: Path) -> Arrays:
    """Return the arrays of a file as float32, mapped: what nobody looks at is not in memory.

    They may be written to; that changes memory and not the file, which may be removed meanwhile.

    Raises:
        RefusedError: it is no file of arrays.
    """
    with ArrayFile(path) as file:
        whole = np.memmap(path, np.uint8, mode="c")
        arrays: Arrays = {}
        for name in file.names:
            if (place := file.place(name)) is None:
                arrays[name] = file.array(name)
            else:
                # A plain array: a memmap's subclass costs time at every slice.
                arrays[name] = np.asarray(whole[place]).view("<f4").reshape(file.shape(name))
        return arrays
