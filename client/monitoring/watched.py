"""The parts of a running agent that can be looked at, as they come to be: filled in by whoever starts it."""

from dataclasses import dataclass, field

from fedpath.core.monitoring.children import Mailbox
from fedpath.core.monitoring.pulse import Pulse


@dataclass(slots=True)
class Watched:
    """Whoever watches reads it in threads of its own, and only ever reads."""

    pulse: Pulse = field(default_factory=Pulse)
    mailbox: Mailbox | None = None
