"""A Ray cluster in a process of its own, as somebody else runs it."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

_HEAD = """
import sys
import ray
ray.init(address="local", num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
print("cluster at", ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True, slots=True)
class Head:
    """The process that started a cluster, and its address."""

    process: subprocess.Popen[str]
    address: str

    def kill(self) -> None:
        """End the cluster at once, all processes of it."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        for process in [psutil.Process(self.process.pid), *family]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


@contextmanager
def cluster(before: Sequence[str] = ()) -> Iterator[Head]:
    """Start a cluster of two CPUs (after the words in ``before``); it ends with the context."""
    process = subprocess.Popen(
        [*before, sys.executable, "-c", _HEAD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        said = next(line for line in process.stdout if line.startswith("cluster at"))
        yield Head(process, said.split()[-1])
    finally:
        process.stdin.close()  # it shuts its cluster down
        process.stdout.close()
        process.wait(30)


def actors_of(pid: int, name: str) -> list[psutil.Process]:
    """The actors of a class among the processes that a process started."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):  # it has ended meanwhile
            if f"ray::{name}" in " ".join(child.cmdline()):
                found.append(child)
    return found
