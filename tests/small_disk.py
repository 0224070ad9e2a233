"""A disk of a few megabytes that can be filled and emptied: a tmpfs in a mount namespace of its own."""

import errno
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SmallDisk:
    """Other processes reach it through /proc; it goes with the test."""

    path: Path
    """The mount as processes outside of the namespace see it."""

    def fill(self) -> None:
        """Leave no room for a single byte."""
        with (self.path / "filler").open("wb", buffering=0) as file:
            size = 2**20
            while size:
                try:
                    file.write(bytes(size))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    size //= 2

    def make_room(self) -> None:
        """Take away what filled it."""
        (self.path / "filler").unlink()

    def remount(self, how: str) -> None:
        """Let nobody write to it ("ro"), or everybody again ("rw")."""
        namespace, _, at = str(self.path).removeprefix("/proc/").partition("/root")
        subprocess.run(
            ["nsenter", f"--mount=/proc/{namespace}/ns/mnt", "mount", "-o", f"remount,{how}", at], check=True
        )


@contextmanager
def small_disk(at: Path, size: str) -> Iterator[SmallDisk]:
    """Mount one at ``at``, an empty folder, where its holder sees it; see `SmallDisk.path` for the others."""
    at.mkdir(parents=True, exist_ok=True)
    # Ends with this process, however that ends: its standard input is then closed.
    script = f'mount -t tmpfs -o size={size} none "$0" && echo mounted && cat >/dev/null'
    holder = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script, str(at)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"mounted\n"
        yield SmallDisk(Path(f"/proc/{holder.pid}/root{at}"))
    finally:
        holder.kill()
        holder.communicate()
