"""fedpath's processes in a fraction of the time: each is forked off one that has imported torch and Flower already.

A process so made is like any other: it has its own pid, memory, files and signals, and ends as the command does. Only
its first seconds are missing, which every process of a federation would spend on the same imports; a test that starts a
dozen of them would do little else. The demo's and the simulations' tests start the real command.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

_IMPORTED = [
    "fedpath.cli.main",
    "fedpath.client.agent.join",
    "fedpath.server.start",
    # What torch and fedpath import when they train and validate for the first time.
    "torch._dynamo",
    "sklearn.metrics",
]

SEARCH_PATH = os.environ.get("PYTHONPATH")
"""Of the processes: another one takes the real command."""


class Forked:
    """A process, handled as `subprocess.Popen` is.

    Args:
        script: Python to run; None for the command itself.
        arguments: of `fedpath`.
        log: file for what it prints.
        environment: more of it.
    """

    def __init__(self, script: str | None, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_IMPORTED)
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # before the server of forks imports torch
        self._arguments = list(arguments)
        self._process: ForkServerProcess = context.Process(
            target=_run, args=(script, self._arguments, str(log), dict(environment), str(Path.cwd()))
        )
        self._process.start()

    def poll(self) -> int | None:
        """Return the exit code; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; the exit code."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(self._arguments, timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self._process.pid is not None and self.poll() is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


def _run(script: str | None, arguments: list[str], log: str, environment: dict[str, str], folder: str) -> None:
    """In the new process: be `fedpath ARGUMENTS`, or the script."""
    os.environ |= environment
    os.chdir(folder)
    output, nothing = os.open(log, os.O_WRONLY | os.O_APPEND), os.open(os.devnull, os.O_RDONLY)
    for old, new in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(old, new)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, mode, buffering=1, closefd=False) for number, mode in ((0, "r"), (1, "w"), (2, "w"))
    )
    if script is None:
        from fedpath.cli.main import main

        sys.argv = ["fedpath", *arguments]
        main()
    else:
        sys.argv = ["-c", *arguments]
        names: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(script, "<script>", "exec"), names)
