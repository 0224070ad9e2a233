"""One message as bytes: named tensors and a JSON header in the safetensors format.

Everything that travels is one such blob, so a site's audit log can keep its hash, and a message of many small tensors
costs the transport no more than one large one. safetensors holds plain arrays: reading one never executes code.
"""

import hashlib
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
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
_APART_KEY = "apart"
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Apart:
    """A file of arrays that a message speaks of and that travels by itself (`fedpath.core.exchange.parcel`)."""

    sha256: str
    """Of its bytes; also its name on the way."""
    size: int
    """In bytes."""


def pack(header: str, arrays: Mapping[str, NDArray[Any]] | None = None, apart: Apart | None = None) -> bytes:
    """Return ``header`` (JSON text) and ``arrays`` with their metadata, or which file holds them, as one blob."""
    metadata = {_HEADER_KEY: header}
    if apart is not None:
        metadata[_APART_KEY] = json.dumps({"sha256": apart.sha256, "size": apart.size})
    if isinstance(arrays, WireArrays):
        return as_bytes(arrays, arrays.metadata | metadata)
    # safetensors writes memory as it lies, whatever the strides and byte order: a view would arrive scrambled.
    plain = {
        name: np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")
        for name, array in (arrays or {}).items()
    }
    return save(plain, metadata=metadata)


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
        header = _metadata(content)[_HEADER_KEY]
    except (struct.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unreadable(content, error) from None
    if not isinstance(header, str):
        raise RefusedError("message header is not text", remedy="run the same version of fedpath on both sides")
    return header


def apart_from(content: bytes) -> Apart | None:
    """Return which file holds the arrays of a blob made by `pack`; None where they are in it, or there are none.

    Raises:
        RefusedError: the blob does not say so as it should.
    """
    try:
        stated = json.loads(_metadata(content).get(_APART_KEY, "null"))
        if stated is None:
            return None
        sha256, size = stated["sha256"], stated["size"]
        if isinstance(size, int) and size > 0 and re.fullmatch(r"[0-9a-f]{64}", sha256):
            return Apart(sha256, size)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise RefusedError(
        "message does not say which file holds its arrays", remedy="run the same version of fedpath on both sides"
    )


def _metadata(content: bytes) -> dict[str, Any]:
    (length,) = _LENGTH.unpack_from(content)
    metadata: dict[str, Any] = json.loads(content[_LENGTH.size : _LENGTH.size + length])["__metadata__"]
    return metadata


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
