"""Whether a process is alive and ready, and what is wrong if it is not: one account for HTTP and gRPC.

Three kinds of checks. A *vital* one that fails means that only a restart can help. A *ready* one that fails means that
the process lives and has nobody to work with. Any other means that it works with something missing.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

Weight = Literal["vital", "ready", "minor"]
Check = Callable[[], str | None]
"""Says what is wrong; None where nothing is."""


@dataclass(frozen=True, slots=True)
class State:
    """What the checks came to."""

    wrong: dict[str, str | None]
    """By check: what is wrong, None where nothing is."""
    alive: bool
    ready: bool

    @property
    def status(self) -> str:
        """Return "ok", "degraded" or "failing"."""
        if not self.alive:
            return "failing"
        return "degraded" if any(self.wrong.values()) else "ok"

    def record(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        checks = {name: {"ok": said is None, "says": said or ""} for name, said in self.wrong.items()}
        return {"status": self.status, "ready": self.ready, "checks": checks}


class Health:
    """The checks of one process."""

    def __init__(self) -> None:
        self._checks: dict[str, tuple[Weight, Check]] = {}
        self._lock = threading.Lock()

    def add(self, name: str, weight: Weight, check: Check) -> None:
        """Add a check.

        Args:
            name: one word, also a metric's label.
            weight: what follows where it fails.
            check: is called whenever somebody asks, in any thread, and returns at once.
        """
        with self._lock:
            self._checks[name] = (weight, check)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._checks))

    def look(self) -> State:
        """Do all checks now."""
        with self._lock:
            checks = dict(self._checks)
        wrong = {name: check() for name, (_, check) in checks.items()}
        failing = {checks[name][0] for name, said in wrong.items() if said is not None}
        alive = "vital" not in failing
        return State(wrong, alive, alive and "ready" not in failing)
