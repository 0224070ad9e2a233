"""Signs of life of the loops that do a process's work: a loop that has given none for longer than it may is stuck.

Work that takes long says so before it begins. Whoever watches a process asks `Pulse.stuck`; nobody has to.
"""

import threading
import time
from collections.abc import Callable


class Pulse:
    """Of one process; its methods may be called in any thread.

    Args:
        clock: seconds that only go on.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._beats: dict[str, tuple[float, float]] = {}
        self.contact: float | None = None
        """When the other side was last heard, in seconds since the epoch; None before the first time."""

    def beat(self, who: str, allow_s: float) -> None:
        """Give a sign of life.

        Args:
            who: which loop.
            allow_s: seconds that it may need until the next one.
        """
        with self._lock:
            self._beats[who] = (self._clock(), allow_s)

    def over(self, who: str) -> None:
        """Say that a loop has ended as it should."""
        with self._lock:
            self._beats.pop(who, None)

    def note_contact(self) -> None:
        """Note that the other side was heard just now."""
        self.contact = time.time()

    def stuck(self) -> str | None:
        """Say which loop has given no sign of life for longer than it said; None where none is."""
        now = self._clock()
        with self._lock:
            late = {who: now - at for who, (at, allow_s) in self._beats.items() if now - at > allow_s}
        if not late:
            return None
        return "; ".join(f"{who}: no sign of life for {seconds:.0f} s" for who, seconds in sorted(late.items()))
