"""A Ray cluster: one that is started here for as long as it is needed, or one that is running already.

Ray is imported when it is asked for: nothing else of fedpath needs it.
"""

import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fedpath.core.errors import ConfigError

LOCAL = "local"
_ANSWERS_WITHIN_S = 10


@contextmanager
def connected(address: str, option: str, **own: Any) -> Iterator[Any]:
    """Give the module `ray`, connected. Inside another such context it is that one's cluster.

    Args:
        address: of a cluster; "local" starts one on this machine, which ends with the context.
        option: what the address was given by, for the message.
        own: further arguments of `ray.init` for a cluster that is started here.

    Raises:
        ConfigError: nobody answers at that address.
        ModuleNotFoundError: Ray is not installed.
    """
    import ray

    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"configure_logging": False, "log_to_driver": False}
    with warnings.catch_warnings():
        # About what a later Ray does with GPUs; the version is pinned.
        warnings.simplefilter("ignore", FutureWarning)
        if address == LOCAL:
            # By name: without it Ray would join what RAY_ADDRESS in the environment names.
            ray.init(address=LOCAL, include_dashboard=False, _node_ip_address="127.0.0.1", **quiet, **own)
        else:
            try:
                _knock(address)
                ray.init(address=address, **quiet)
            except (OSError, RuntimeError, ValueError) as error:
                raise ConfigError(
                    f"{option} {address}: no Ray cluster there ({str(error).partition(chr(10))[0]})",
                    remedy=f"start one (ray start --head) or give {option} {LOCAL}",
                ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def joined() -> str | None:
    """Return the address of the cluster that this process is connected to, for another process to join; None if none.

    Ray is not imported for it.
    """
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    address: str = ray.get_runtime_context().gcs_address
    return address


def reachable(address: str) -> bool:
    """Return whether a cluster's head answers at host:port."""
    try:
        _knock(address)
    except OSError:
        return False
    return True


def _knock(address: str) -> None:
    """Raise OSError if nobody listens at host:port: Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_ANSWERS_WITHIN_S).close()
