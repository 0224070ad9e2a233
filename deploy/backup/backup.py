#!/usr/bin/env python3
"""Copy a coordinator's folder while the coordinator runs: one tar file, from which a new coordinator goes on.

    fedpath-backup --dir /var/lib/fedpath --to /var/backups/fedpath --keep 14
    fedpath-backup --dir /var/lib/fedpath --to - > coordinator.tar

A run's files are written under another name and renamed, so a hard link holds what a file was at that moment: all of
them are linked first, which takes milliseconds, and read afterwards. Records are linked before the models and updates
that they name, for they are written after them. Logs are appended to and therefore copied; SQLite copies the database
of messages. What does not fit together all the same is what a killed coordinator may leave, too, and is put right when
one starts on the copy.

Left out: `registry.db`, an index which holds this machine's paths and is made again, and `incoming` and `outgoing`,
which hold what is on its way. The copy holds hospitals' updates of the open round: keep it as you keep the folder.

Needs Python 3.9 and nothing else, and the right to read the folder and to write to it.
"""

import argparse
import contextlib
import os
import shutil
import sqlite3
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

MESSAGES = "flower.db"
LEFT_OUT = ("registry.db", "incoming", "outgoing")
PREFIX, SUFFIX = "fedpath-", ".tar"
FAILED = 1


def main() -> int:
    """Make one copy; return the exit code."""
    parser = argparse.ArgumentParser(prog="fedpath-backup", description="Copy a coordinator's folder while it runs.")
    parser.add_argument("--dir", type=Path, required=True, help="the coordinator's folder, as after `--dir` of fedpath")
    parser.add_argument("--to", required=True, help="folder for the copies, or - for standard output")
    parser.add_argument("--keep", type=int, help="remove all copies but the newest KEEP")
    chosen = parser.parse_args()
    if not (chosen.dir / "runs").is_dir():
        print(f"error: {chosen.dir}: no coordinator's folder: it has no 'runs'", file=sys.stderr)
        return 2
    if chosen.keep is not None and chosen.keep < 1:
        print("error: --keep must be at least 1", file=sys.stderr)
        return 2
    try:
        with frozen(chosen.dir) as copy:
            if chosen.to == "-":
                with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
                    archive.add(copy, arcname=".")
            else:
                print(keep(copy, Path(chosen.to), chosen.keep))
    except (OSError, sqlite3.Error) as error:
        print(f"error: no copy was made: {error}", file=sys.stderr)
        return FAILED
    return 0


@contextlib.contextmanager
def frozen(folder: Path) -> Iterator[Path]:
    """Yield a folder that holds what ``folder`` held at one moment; it is removed afterwards."""
    copy = Path(tempfile.mkdtemp(prefix=".backup-", dir=folder))
    try:
        for path in in_order(folder):
            freeze(path, copy / path.relative_to(folder))
        if (folder / MESSAGES).is_file():
            copy_database(folder / MESSAGES, copy / MESSAGES)
        yield copy
    finally:
        shutil.rmtree(copy)


def in_order(folder: Path) -> "list[Path]":
    """Return the files to copy, the records of rounds first."""
    files = []
    for place, folders, names in os.walk(folder, onerror=unless_gone):
        if Path(place) == folder:
            folders[:] = [name for name in folders if not name.startswith((".", *LEFT_OUT))]
            names = [name for name in names if not name.startswith((MESSAGES, *LEFT_OUT))]
        files += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(files, key=lambda path: (path.parent.name != "rounds", str(path)))


def unless_gone(error: OSError) -> None:
    """Let only a folder be passed over that the coordinator has removed meanwhile."""
    if not isinstance(error, FileNotFoundError):
        raise error


def freeze(path: Path, to: Path) -> None:
    """Link a file, or copy one that is appended to or that cannot be linked; one that is gone by now is passed over."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if path.suffix not in (".jsonl", ".log"):
            try:
                os.link(path, to)
            except FileNotFoundError:
                raise
            except OSError:  # of a file system without links, or not our file: then it takes longer
                shutil.copy2(path, to)
        else:
            shutil.copy2(path, to)


def copy_database(path: Path, to: Path) -> None:
    """Copy a SQLite database that others write to."""
    with (
        contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as source,
        contextlib.closing(sqlite3.connect(to)) as target,
    ):
        source.backup(target)


def keep(copy: Path, folder: Path, most: "int | None") -> Path:
    """Write the copy into ``folder``, whole or not at all, readable by its owner only; remove the oldest ones."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{PREFIX}{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}{SUFFIX}"
    handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            with tarfile.open(fileobj=file, mode="w") as archive:
                archive.add(copy, arcname=".")
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise
    for old in sorted(folder.glob(f"{PREFIX}*{SUFFIX}"))[: -most if most else 0]:
        old.unlink()
    return path


if __name__ == "__main__":
    sys.exit(main())
