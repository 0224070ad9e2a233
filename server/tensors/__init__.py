"""Files of arrays between the coordinator and the sites: what orders lend out, what answers bring in."""

from fedpath.server.tensors.app import TensorApp
from fedpath.server.tensors.incoming import Incoming
from fedpath.server.tensors.outgoing import Outgoing

__all__ = ["Incoming", "Outgoing", "TensorApp"]
