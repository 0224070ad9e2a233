"""Errors as one word of a small fixed set: what a metric's label may hold. Their texts name files, and stay in logs."""

import torch

from fedpath.core.errors import ConfigError, DataError, RefusedError
from fedpath.core.training.engines.launch import TrainingProcessError

_ROOMS = {
    "fedpath.core.bags": "features",
    "fedpath.core.cohort.clinical": "clinical",
    "fedpath.core.clinical": "clinical",
    "fedpath.core.cohort": "manifest",
    "fedpath.client.audit": "audit",
    "fedpath.client.slides": "slide",
    "fedpath.client.tuning": "slide",
    "fedpath.client.agent.encode_work": "slide",
}
"""What an error is about, by the room that raised it: the longest name that fits."""
DATA_CAUSES = (*sorted({*_ROOMS.values(), "patch"}), "other")
ORDER_CAUSES = ("config", "data", "memory", "other", "process", "refused")


def data_cause(error: BaseException) -> str:
    """Return what an error about a hospital's data is about, one of `DATA_CAUSES`."""
    trace, rooms = error.__traceback__, list[str]()
    while trace is not None:
        rooms.append(str(trace.tb_frame.f_globals.get("__name__", "")))
        trace = trace.tb_next
    # From where it was raised outwards: the first room that says something.
    for room in reversed(rooms):
        for name in sorted(_ROOMS, key=len, reverse=True):
            if room == name or room.startswith(f"{name}."):
                return _ROOMS[name]
    return "other"


def order_cause(error: BaseException) -> str:
    """Return why an order could not be carried out, one of `ORDER_CAUSES`."""
    match error:
        case TrainingProcessError():
            return "process"
        case torch.OutOfMemoryError():
            return "memory"
        case DataError():
            return "data"
        case ConfigError():
            return "config"
        case RefusedError():
            return "refused"
        case _:
            return "other"
