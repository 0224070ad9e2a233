"""Network namespaces: a coordinator behind an address of its own, and a hospital at the end of a cable that can be cut.

Only root can make them. They are removed also where a test fails; what a killed test run left behind is harmless, for
each run has names of its own.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces and small disks need root")
HUB = "10.215.0.1"
"""Where the coordinator is reached from either end: an address of the namespaces, and of nothing else."""


@dataclass(frozen=True, slots=True)
class Cable:
    """Two namespaces with a cable between them."""

    hub: str
    """The coordinator's, with the address `HUB`."""
    far: str
    """A hospital's."""

    def inside(self, namespace: str) -> tuple[str, ...]:
        """What to put before a command so that it runs in a namespace."""
        return ("ip", "netns", "exec", namespace)

    def cut(self) -> None:
        """Pull the cable."""
        _ip("-n", self.far, "link", "set", "cable", "down")

    def holds_back(self) -> bool:
        """Return whether the hospital has sent something that nobody has got yet."""
        lines = _run("ip", "netns", "exec", self.far, "ss", "-tnH", "state", "established").splitlines()
        return any(int(line.split()[1]) > 0 for line in lines)

    def mend(self) -> None:
        """Put it in again."""
        _ip("-n", self.far, "link", "set", "cable", "up")


@contextmanager
def cable() -> Iterator[Cable]:
    """Make the namespaces and the cable; remove them afterwards."""
    hub, far = (f"fedpath-{os.getpid()}-{end}" for end in ("hub", "far"))
    made: list[str] = []
    try:
        for name in (hub, far):
            _ip("netns", "add", name)
            made.append(name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", hub, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", far)
        for name, address in ((hub, HUB), (far, "10.215.0.2")):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            _ip("-n", name, "link", "set", "cable", "up")
        yield Cable(hub, far)
    finally:
        for name in made:
            _ip("netns", "delete", name)


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout
