"""One message as bytes: named tensors and a JSON header in the safetensors format.

Everything that travels is one such blob, so a site's audit log can keep its hash, and a message of many small tensors
costs the transport no more than one large one. safetensors holds plain arrays: reading one never executes code.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedpath.core.errors import RefusedError
from fedpath.core.exchange.stored import WireArrays, as_bytes

Arrays = dict[str, NDArray[Any]]
"""Parameter arrays by "group/name"."""

BLOB = "fedpath"
"""Name of the one record, and of the one array in it, that a transport's message consists of."""
REASON_HEADER = "x-fedpath-reason"
"""HTTP header in which the coordinator says why it turns a site away: "unregistered" or "connected"."""
_HEADER_KEY = "fedpath"
_LENGTH = struct.Struct("<Q")


def pack(header: str, arrays: Mapping[str, NDArray[Any]] | None = None) -> bytes:
    """Return ``header`` (JSON text) and ``arrays``, with their metadata, as one safetensors blob."""
    if isinstance(arrays, WireArrays):
        return as_bytes(arrays, arrays.metadata | {_HEADER_KEY: header})
    # safetensors writes memory as it lies, whatever the strides and byte order: a view would arrive scrambled.
    plain = {
        name: np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")
        for name, array in (arrays or {}).items()
    }
    return save(plain, metadata={_HEADER_KEY: header})


def unpack(content: bytes) -> tuple[str, Arrays]:
    """Return the header and the arrays of a blob made by `pack`.

    Raises:
        RefusedError: the bytes are not such a blob.
    """
    try:
        arrays = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(content, error) from None
    return header_of(content), arrays


def header_of(content: bytes) -> str:
    """Return the header of a blob made by `pack`, whatever arrays it holds: they are not looked at.

    Raises:
        RefusedError: the bytes have no such header.
    """
    try:
        (length,) = _LENGTH.unpack_from(content)
        header = json.loads(content[_LENGTH.size : _LENGTH.size + length])["__metadata__"][_HEADER_KEY]
    except (struct.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unreadable(content, error) from None
    if not isinstance(header, str):
        raise RefusedError("message header is not text", remedy="run the same version of fedpath on both sides")
    return header


def hash_arrays(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 of a model: names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")  # not ascontiguousarray, which makes a row of a single number
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _unreadable(content: bytes, error: Exception) -> RefusedError:
    return RefusedError(
        f"message of {len(content)} bytes is not readable: {error}",
        remedy="run the same version of fedpath on both sides",
    )


def printable(text: str) -> str:
    """Return text of the other side as a terminal can show it: control characters do not steer it."""
    return "".join(character if character.isprintable() else " " for character in text)
