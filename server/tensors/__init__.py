"""Files of arrays between the coordinator and the sites: what orders lend out, what answers bring in."""

from collections.abc import Callable, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from fedpath.core.exchange.transfer import Request
from fedpath.server.tensors.app import TensorApp
from fedpath.server.tensors.incoming import Incoming
from fedpath.server.tensors.outgoing import Outgoing

__all__ = ["Incoming", "Outgoing", "TensorApp", "Tensors"]


class Tensors:
    """All of it, for one coordinator.

    Args:
        folder: the coordinator's.
        keys: of the sites that may connect.
        moved: told now and then, in some thread, how many bytes of a file are over.
    """

    def __init__(
        self,
        folder: Path,
        keys: Mapping[str, ec.EllipticCurvePublicKey],
        moved: Callable[[Request, int], None],
    ) -> None:
        self.outgoing = Outgoing(folder / "outgoing")
        self.incoming = Incoming(folder / "incoming", keys)
        self.app = TensorApp(keys, self.outgoing, self.incoming, moved)

    def clear(self) -> None:
        """Remove all files: nobody goes on with anything."""
        self.outgoing.clear()
        self.incoming.clear()
