"""What is wrong with the file of Flower's state: a full disk, a folder nobody may write to, a damaged file."""

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from fedpath.core.errors import DataError

_SYSTEM = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
}
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def explained(path: Path, error: DBAPIError) -> OSError | DataError | None:
    """Return what an error of the database means; None for one that is not the disk's or the file's.

    Args:
        path: the database.
        error: what SQLAlchemy raised.
    """
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is None:
        return None
    primary = code & 0xFF
    if primary in _SYSTEM:
        # SQLite calls a write that the disk has no room for an input or output error in some places.
        number = errno.ENOSPC if primary == sqlite3.SQLITE_IOERR and _is_full(path) else _SYSTEM[primary]
        return OSError(number, os.strerror(number), str(path))
    if primary in _DAMAGED:
        return DataError(
            f"{path}: is damaged",
            remedy="move it away and start again: it holds messages in transit only, and the run goes on without them; "
            "the hospitals' agents have to be started again",
        )
    return None


@contextmanager
def explaining(path: Path) -> Iterator[None]:
    """Raise what an error of the database means in its place.

    Raises:
        OSError: the disk is full, or the file cannot be written to.
        DataError: the file is damaged.
    """
    try:
        yield
    except DBAPIError as error:
        meaning = explained(path, error)
        if meaning is None:
            raise
        raise meaning from None


def _is_full(path: Path) -> bool:
    disk = os.statvfs(path.parent)
    return disk.f_bavail * disk.f_frsize < 2**16
