"""The parts of a running coordinator that can be looked at, as they come to be: filled in by whoever starts it."""

from dataclasses import dataclass, field

from fedpath.core.monitoring.children import Mailbox
from fedpath.core.monitoring.pulse import Pulse
from fedpath.server.flower import FlowerServer
from fedpath.server.listener import Listener
from fedpath.server.registry.registry import Registry


@dataclass(slots=True)
class Watched:
    """Whoever watches reads it in threads of its own, and only ever reads."""

    pulse: Pulse = field(default_factory=Pulse)
    listener: Listener | None = None
    server: FlowerServer | None = None
    registry: Registry | None = None
    mailbox: Mailbox | None = None
