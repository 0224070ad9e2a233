"""Files that are whole or absent: temporary file in the same folder, fsync, rename."""

import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the operating system say which file it is about: that of a write to a full disk does not."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is synced and renamed to ``path``, on failure removed.

    Args:
        path: what to replace.
        private: only the owner may read it; from the first byte on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path):
        yield from _replacing(path, private)


def _replacing(path: Path, private: bool) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if not private:
            # mkstemp makes private files; what replaces a document should be as readable as a new one.
            temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    """Return the process's umask. Other threads make files meanwhile: where the system says it, it is not touched."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("Umask:")[2].split()[0], 8)
    except (OSError, ValueError, IndexError):  # not Linux
        with _LOCK:
            umask = os.umask(0)
            os.umask(umask)
            return umask


_LOCK = threading.Lock()


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` as a whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write ``content`` to ``path`` (UTF-8) as a whole or not at all."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` to ``path`` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
