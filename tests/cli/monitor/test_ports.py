"""The ports on which a process can be watched, asked by a browser's and Kubernetes' means."""

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import grpc
import pytest
from federation import wait_until
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedpath.cli.monitor.rpc import RpcPort
from fedpath.cli.monitor.web import WebPort
from fedpath.core.errors import ConfigError
from fedpath.core.monitoring.health import Health
from fedpath.core.monitoring.metrics import BUILD, Metrics


class Process:
    """What is watched."""

    def __init__(self) -> None:
        self.stuck: str | None = None
        self.away: str | None = None
        self.health = Health()
        self.health.add("main_loop", "vital", lambda: self.stuck)
        self.health.add("coordinator", "ready", lambda: self.away)
        self.metrics = Metrics([BUILD], "client", lambda: [])


@pytest.fixture
def process() -> Process:
    return Process()


@pytest.fixture
def web(process: Process) -> Iterator[WebPort]:
    with WebPort("127.0.0.1", 0, process.metrics, process.health) as port:
        yield port


@pytest.fixture
def rpc(process: Process) -> Iterator[RpcPort]:
    with RpcPort("127.0.0.1", 0, process.health) as port:
        yield port


def get(port: int, path: str, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, str]:
    request = urllib.request.Request(f"http://{host}:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_metrics_and_health_are_served(process: Process, web: WebPort) -> None:
    status, text = get(web.port, "/metrics")
    assert status == 200
    assert 'fedpath_build_info{role="client"' in text or 'role="client"' in text
    assert get(web.port, "/health")[0] == get(web.port, "/health/ready")[0] == 200
    process.away = "the coordinator is away"
    assert get(web.port, "/health")[0] == 200
    status, text = get(web.port, "/health/ready")
    assert (status, json.loads(text)["checks"]["coordinator"]["says"]) == (503, "the coordinator is away")
    process.stuck = "the agent: no sign of life for 400 s"
    status, text = get(web.port, "/health")
    assert (status, json.loads(text)["status"]) == (503, "failing")


@pytest.mark.parametrize("path", ["/", "/metrics/", "/health/", "/../etc/passwd", "/health/other"])
def test_nothing_else_is_served(web: WebPort, path: str) -> None:
    assert get(web.port, path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_sent(web: WebPort, method: str) -> None:
    assert get(web.port, "/metrics", method)[0] == 405


def test_a_client_that_says_nothing_holds_nobody_up(web: WebPort) -> None:
    with socket.create_connection(("127.0.0.1", web.port)):
        assert get(web.port, "/health")[0] == 200


def test_grpcs_health_service_says_the_same(process: Process, rpc: RpcPort) -> None:
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    with grpc.insecure_channel(f"127.0.0.1:{rpc.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        def says(service: str) -> int:
            return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status

        assert [says(service) for service in ("", "fedpath", "fedpath.ready")] == [serving] * 3
        process.away = "the coordinator is away"
        wait_until(lambda: says("fedpath.ready") == not_serving, "it is not ready")
        assert [says(""), says("fedpath")] == [serving] * 2
        process.stuck = "it stands still"
        wait_until(lambda: says("") == not_serving, "it is not alive")
        assert says("fedpath") == not_serving
        with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
            says("other")


def test_a_client_may_watch(process: Process, rpc: RpcPort) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{rpc.port}") as channel:
        watched = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service="fedpath"), timeout=30
        )
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        process.stuck = "it stands still"
        assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watched.cancel()


def test_a_port_that_is_taken_is_named(process: Process, web: WebPort, rpc: RpcPort) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{web.port}") as caught:
        WebPort("127.0.0.1", web.port, process.metrics, process.health)
    assert "--metrics-port" in caught.value.remedy
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{rpc.port}") as caught:
        RpcPort("127.0.0.1", rpc.port, process.health)
    assert "--health-port" in caught.value.remedy


def test_the_newer_internet_protocol_is_spoken(process: Process) -> None:
    with WebPort("::1", 0, process.metrics, process.health) as web, RpcPort("::1", 0, process.health) as rpc:
        assert get(web.port, "/health", host="[::1]")[0] == 200
        with grpc.insecure_channel(f"[::1]:{rpc.port}") as channel:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
