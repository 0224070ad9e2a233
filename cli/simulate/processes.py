"""The processes that carry out orders: Ray on this machine, or on a cluster."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fedpath.core.cluster import LOCAL, connected
from fedpath.core.errors import ConfigError

_STORE_BYTES = 512 * 2**20
"""Of Ray's store: the models of two rounds and the answers on their way; what does not fit goes to disk."""


@dataclass(frozen=True, slots=True)
class Processes:
    """What carries out the orders."""

    ray: Any
    """The module, connected."""
    at_once: int
    """Hospitals at work at the same time."""
    ahead: int = 1
    """Orders handed over for each of them: with 2, a process has its next one while its answer is looked at."""
    gpus: float = 0.0
    """Share of a GPU that each takes."""


@contextmanager
def processes_on(address: str, workers: int | None, gpus: float) -> Iterator[Processes]:
    """Give the processes.

    Args:
        address: of a Ray cluster; "local" starts one here.
        workers: hospitals at work at the same time; by default one a core.
        gpus: share of a GPU that each takes.

    Raises:
        ConfigError: there is no cluster, or no GPU.
    """
    own = {"num_cpus": workers, "object_store_memory": _STORE_BYTES}
    with connected(address, "--ray-address", **own) as ray:
        # Of a process that died the records tell; Ray would print paragraphs about it between the progress lines.
        ray._private.worker._worker_logs_enabled = False
        there: dict[str, float] = ray.cluster_resources()
        if gpus > there.get("GPU", 0):
            raise ConfigError(
                f"--gpus {gpus:g}: Ray finds {there.get('GPU', 0):g} GPUs", remedy="leave it out to train on the CPU"
            )
        # On a cluster with more cores than workers, what is handed over is at work.
        ahead = 2 if address == LOCAL or workers is None else 1
        yield Processes(ray, workers or max(1, int(there.get("CPU", 1))), ahead, gpus)
