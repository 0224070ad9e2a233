"""The updates of the open round on disk: an update is here from the moment it arrives until it has counted.

One file a site, as it came (`fedpath.core.exchange.stored`). Nothing of it is held in memory: combining maps the file
and lets go of it, so a round costs the same memory for any number of hospitals, and a coordinator that is killed has
what it had.
"""

import os
import shutil
from pathlib import Path

from fedpath.core.exchange.stored import ArrayFile
from fedpath.core.files import replacing, sha256_file
from fedpath.server.talk import Reply


class Spool:
    """The folder of one round's updates.

    Args:
        folder: made when the first update comes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, reply: Reply) -> tuple[Path, str]:
        """Put the arrays of a reply on disk; return the file and its SHA-256."""
        path = self.path_of(reply.site)
        if reply.file is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with reply.file.open("rb") as file:
                os.fsync(file.fileno())
            reply.file.replace(path)
        else:
            with replacing(path) as temporary:
                temporary.write_bytes(reply.content)
        return path, reply.sha256 or sha256_file(path)

    def has(self, site: str, sha256: str) -> bool:
        """Return whether a site's update is here as it was when it was kept."""
        path = self.path_of(site)
        return path.is_file() and sha256_file(path) == sha256

    def open(self, site: str) -> ArrayFile:
        """Open a site's update.

        Raises:
            RefusedError: it is no file of arrays.
        """
        return ArrayFile(self.path_of(site))

    def drop(self, site: str) -> None:
        """Remove a site's update: it does not count."""
        self.path_of(site).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all: they have counted."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def path_of(self, site: str) -> Path:
        """Return where a site's update is kept."""
        return self._folder / f"{site}.safetensors"
