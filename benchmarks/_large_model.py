"""Rounds of a 100 MB model at two hospitals, and the memory they take at the coordinator.

The model is ABMIL with a gate of 25 million numbers, on four bags of eight instances, two of them to train on; an
epoch is one optimizer step, so that what a round costs is the model's way.
"""

import json
from collections.abc import Callable
from pathlib import Path

from fedpath.server.records import RoundManifest, read_rounds

BODY = """[task]
labels = ["a", "b"]
[features]
encoder = "noise"
width = 16
[training]
rounds = {rounds}
local_epochs = 1
accumulate_bags = 64
[model]
name = "abmil"
options = {{ inner = 4096, attention = 3030 }}
"""
PARAMETERS = 4096 * (16 + 1) + (4096 + 1) * 2 * 3030 + (3030 + 1) + 2 * (4096 + 1)
"""Of that model."""


class CoordinatorMemory:
    """Watches the coordinator's process; see `_federation.run`.

    Args:
        events: the file that the coordinator writes its events to.
    """

    def __init__(self, events: Path) -> None:
        self._events = events
        self._before: int | None = None
        self._after = self._peak = 0

    def __call__(self, pid: int) -> None:
        """Note what is resident now and what was at most."""
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except FileNotFoundError:
            return
        sizes = {line.split()[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}
        if self._before is None:
            # Before it listens it has made nothing of the model.
            if self._is_listening():
                self._before = self._after
            self._after = sizes.get("VmRSS:", self._after)
        self._peak = max(self._peak, sizes.get("VmHWM:", 0))

    def models(self) -> float:
        """Return how many models the memory rose by at most."""
        assert self._before is not None
        return (self._peak - self._before) / (4 * PARAMETERS)

    def _is_listening(self) -> bool:
        if not self._events.exists():
            return False
        return any(json.loads(line)["kind"] == "listening" for line in self._events.read_text().splitlines() if line)


def transfer_rounds(
    folder: Path, run: Callable[[Path, str, Callable[[int], None]], Path]
) -> tuple[list[RoundManifest], float]:
    """Return the rounds, and the coordinator's peak in models.

    Args:
        folder: of the run.
        run: runs a federation whose federation.toml ends with a text, with a watcher; returns the run's folder.
    """
    memory = CoordinatorMemory(folder / "server" / "events.jsonl")
    return read_rounds(run(folder, BODY, memory)), memory.models()
