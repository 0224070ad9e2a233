"""The demo's child processes: started as a user would, watched, and ended whatever happens."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from fedpath.core.errors import FedpathError

_GRACE_S = 10.0


class Processes:
    """A set of `fedpath` processes; leaving the context ends those that still run."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        # A closed terminal or a plain `kill` must end the children too, not only Ctrl-C.
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        deadline = time.monotonic() + _GRACE_S
        for process in self._running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self._running.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start(self, name: str, arguments: Sequence[str | Path]) -> None:
        """Start ``fedpath ARGUMENTS``; what it prints goes to ``logs/NAME.log``."""
        command = [sys.executable, "-m", "fedpath.cli", *map(str, arguments)]
        # One thread each: the processes share the cores, and the same sums come out on every run.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with (self._logs / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
            )

    def start_federation(self, federation: Path, state: Path, credentials: Path, sites: Mapping[str, Path]) -> None:
        """Start a coordinator and its hospitals: "server" and "client-SITE".

        Args:
            federation: federation.toml.
            state: the coordinator's folder.
            credentials: what `fedpath provision` wrote.
            sites: each hospital's site.toml.
        """
        self.start("server", ["server", "start", "--config", federation, "--dir", state])
        for site, config in sites.items():
            kit = credentials / "kits" / site
            self.start(f"client-{site}", ["client", "join", "--site", site, "--kit", kit, "--config", config])

    def pid(self, name: str) -> int:
        """Return the number of a process."""
        return self._running[name].pid

    def busy(self) -> list[str]:
        """Return the names of the processes that still run.

        Raises:
            FedpathError: one ended with an error; with the last lines it printed.
        """
        busy = []
        for name, process in list(self._running.items()):
            code = process.poll()
            if code is None:
                busy.append(name)
            elif code != 0:
                log = self._logs / f"{name}.log"
                tail = _last_words(log.read_text(errors="replace"))
                raise FedpathError(f"{name} ended with code {code}: {tail}", remedy=f"its whole log is {log}")
        return busy

    def memory_mb(self) -> float:
        """Return the memory of this process and its children in MB, shared pages counted once; 0 where unknown."""
        own = [os.getpid()] + [process.pid for process in self._running.values() if process.poll() is None]
        return sum(_proportional_kb(pid) for pid in own) / 1024


def _last_words(output: str) -> str:
    """Return the error a `fedpath` process ended with, or whatever it printed last."""
    lines = output.strip().splitlines() or ["it printed nothing"]
    return next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[-1])


def _proportional_kb(pid: int) -> int:
    """Return a process's proportional set size, from Linux's /proc."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # ended meanwhile, or not Linux
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
