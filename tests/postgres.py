"""A PostgreSQL of our own for a test: a private cluster in a temporary folder, on a free port of the loopback."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from federation import free_port, wait_until

PASSWORD = "s3cret"
_USER = "nobody"
"""Who runs it where the tests are root's: PostgreSQL refuses root."""


def binaries() -> Path:
    """Where PostgreSQL's programs are: on the path, or where Debian puts them."""
    if found := shutil.which("initdb"):
        return Path(found).parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    assert versions, "PostgreSQL is not installed: `make .venv/.debian` does it"
    return versions[-1].parent


@dataclass
class Postgres:
    """A server with one empty database."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def url(self, password: str = PASSWORD, database: str = "postgres") -> str:
        return f"postgresql+psycopg://fedpath:{password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> Self:
        options = ["-D", "data", "-p", str(self.port), "-k", str(self.folder), "-c", "listen_addresses=127.0.0.1"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*_as_user(), str(binaries() / "postgres"), *options], cwd=self.folder, stdout=log, stderr=log
            )
        ready = [str(binaries() / "pg_isready"), "-h", "127.0.0.1", "-p", str(self.port)]

        def answers() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, (self.folder / "log").read_text()
            if (binaries() / "pg_isready").exists():
                return subprocess.run(ready, capture_output=True, check=False).returncode == 0
            return "ready to accept connections" in (self.folder / "log").read_text().rpartition("starting")[2]

        wait_until(answers, "PostgreSQL answers")
        return self

    def stop(self) -> None:
        """Fast: connections are cut, nothing is lost."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)


def _as_user() -> list[str]:
    return ["setpriv", f"--reuid={_USER}", f"--regid={_group()}", "--clear-groups"] if os.getuid() == 0 else []


def _group() -> str:
    import grp
    import pwd

    return grp.getgrgid(pwd.getpwnam(_USER).pw_gid).gr_name


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Make a cluster and start it; everything is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="fedpath-postgres-"))
    server = Postgres(folder, free_port())
    try:
        (folder / "password").write_text(PASSWORD)
        if os.getuid() == 0:
            for path in (folder, folder / "password"):
                shutil.chown(path, _USER)
        wanted = ["-D", "data", "-U", "fedpath", "--pwfile=password", "--auth=scram-sha-256", "--no-sync", "-E", "UTF8"]
        made = subprocess.run(
            [*_as_user(), str(binaries() / "initdb"), *wanted], cwd=folder, capture_output=True, text=True, check=False
        )
        assert made.returncode == 0, made.stderr
        yield server.start()
    finally:
        if server.process is not None and server.process.poll() is None:
            server.process.kill()
            server.process.wait()
        shutil.rmtree(folder)
