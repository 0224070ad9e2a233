"""The standard health service of gRPC (grpc.health.v1): what Kubernetes' native probes ask.

Services: "" and "fedpath" say whether the process is alive, "fedpath.ready" whether it is ready.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer

from fedpath.core.errors import ConfigError
from fedpath.core.monitoring.health import Health

ALIVE, READY = ("", "fedpath"), "fedpath.ready"
_LOOK_S = 1.0
_STATUS = health_pb2.HealthCheckResponse


class RpcPort:
    """Serves while it is entered; looks at the health once a second, for clients that watch.

    Args:
        host: address to listen on.
        port: 0 takes a free one.
        health: of the process.

    Raises:
        ConfigError: the port cannot be taken.
    """

    def __init__(self, host: str, port: int, health: Health) -> None:
        self._health = health
        self._servicer = HealthServicer()
        # SO_REUSEPORT would let two processes share the port unnoticed. A client that watches holds no thread.
        self._server = grpc.server(
            ThreadPoolExecutor(4, thread_name_prefix="health"),
            options=[("grpc.so_reuseport", 0)],
            maximum_concurrent_rpcs=64,
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self._server)
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            self.port = int(self._server.add_insecure_port(where))
        except RuntimeError:
            self.port = 0
        if not self.port:
            raise ConfigError(
                f"cannot listen on {where}: the address is in use, or not this machine's",
                remedy="end what uses that port, or give another --health-port or --monitor-host",
            )
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="health", daemon=True)

    def __enter__(self) -> Self:
        self._look()
        self._server.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._servicer.enter_graceful_shutdown()
        self._server.stop(0.5).wait()

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_S):
            self._look()

    def _look(self) -> None:
        state = self._health.look()
        for name in ALIVE:
            self._servicer.set(name, _status(state.alive))
        self._servicer.set(READY, _status(state.ready))


def _status(fine: bool) -> Any:
    return _STATUS.SERVING if fine else _STATUS.NOT_SERVING
