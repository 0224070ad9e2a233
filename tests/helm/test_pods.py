"""What the charts' pods run, run here: the very arguments, on volumes as a kubelet makes them, probed as it would."""

import http.client
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
import pytest
from charts import Object, PodFiles, containers, of_kind, render, secret_of
from federation import Federation, free_port, wait_until
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedpath.core.config import load_federation
from fedpath.server.provision import provision

pytestmark = pytest.mark.system

TOKEN = "0123456789abcdef" * 4


@dataclass(frozen=True, slots=True)
class Pod:
    """A container of a rendered pod, here."""

    container: Object
    test: Object
    """The pod of `helm test`."""
    files: PodFiles
    test_files: PodFiles
    ports: dict[str | int, int]
    """By the pod's port, and by its name."""

    @property
    def arguments(self) -> list[str]:
        """What the entrypoint gets."""
        return [self.files.mapped(word) for word in self.container["args"]]

    def is_fine(self, probe: str) -> bool:
        """Probe as a kubelet does."""
        asked = self.container[probe]
        if "grpc" in asked:
            with grpc.insecure_channel(f"127.0.0.1:{self.ports[asked['grpc']['port']]}") as channel:
                request = health_pb2.HealthCheckRequest(service=asked["grpc"].get("service", ""))
                try:
                    answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=asked["timeoutSeconds"])
                except grpc.RpcError:
                    return False
                return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
        try:
            return 200 <= _status(self.ports[asked["httpGet"]["port"]], asked["httpGet"]["path"], {}) < 400
        except OSError:
            return False

    def tested(self) -> subprocess.CompletedProcess[str]:
        """Run what the pod of `helm test` runs."""
        (container,) = self.test["spec"]["containers"]
        assert container["command"][0] == "python"
        command = [sys.executable, *container["command"][1:], *map(self.test_files.mapped, container["args"])]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)


def _status(port: int, path: str, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def made(
    folder: Path,
    objects: list[Object],
    *,
    secrets: dict[str, dict[str, bytes]],
    claims: dict[str, Path],
    here: dict[str, str],
) -> Pod:
    """Make the volumes of a chart's pods, and give them ports of this machine."""
    (deployment,), (test,) = of_kind(objects, "Deployment"), of_kind(objects, "Pod")
    pod = deployment["spec"]["template"]
    (container,) = containers(pod)
    ports: dict[str | int, int] = {}
    for port in container["ports"]:
        if port["name"] != "tls":
            ports[port["name"]] = ports[port["containerPort"]] = free_port()
    # Everything listens on this machine alone; flags, and the script of helm test.
    here = here | {"0.0.0.0": "127.0.0.1"}
    here |= {f"={there}": f"={port}" for there, port in ports.items() if isinstance(there, int)}
    here |= {f", {there}": f", {port}" for there, port in ports.items() if isinstance(there, int)}
    files = PodFiles(folder / "pod", objects, pod, secrets=secrets, claims=claims, here=here)
    tested = PodFiles(folder / "test", objects, test, secrets=secrets, claims=claims, here=here)
    return Pod(container, test, files, tested, ports)


def _tls(credentials: Path) -> dict[str, bytes]:
    """As `kubectl create secret tls` makes it."""
    folder = credentials / "server"
    return {"tls.crt": (folder / "server.crt").read_bytes(), "tls.key": (folder / "server.key").read_bytes()}


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    with Federation(tmp_path / "operator", ["A"]) as made_:
        made_.configure(server='listen = "0.0.0.0:9443"')
        provision(load_federation(made_.toml), made_.credentials)
        yield made_


def test_probes_answer_on_what_the_pods_run(federation: Federation, tmp_path: Path) -> None:
    credentials = federation.credentials
    objects = render(
        "fedpath-server",
        "minimal-values.yaml",
        "--set-file",
        f"federation={federation.toml}",
        "--set-file",
        f"siteKeys.A={credentials / 'server' / 'sites' / 'A.pub'}",
        "--set",
        "page.enabled=true,page.token.existingSecret=fedpath-page",
    )
    coordinator = made(
        tmp_path / "coordinator",
        objects,
        secrets={"fedpath-server-tls": _tls(credentials), "fedpath-page": {"token": TOKEN.encode()}},
        claims={},
        here={
            "0.0.0.0:9443": f"127.0.0.1:{federation.port}",
            "lung-fedpath-server-monitoring": "127.0.0.1",
            "lung-fedpath-server": "127.0.0.1",
            "9443": str(federation.port),
        },
    )
    (tmp_path / "site.toml").write_text(
        'state = "/var/lib/fedpath"\n[site]\nname = "A"\n'
        '[data]\nmanifest = "/data/tables/manifest.csv"\nfeatures = "/data/features"\n'
    )
    objects = render("fedpath-site", "minimal-values.yaml", "--set-file", f"site={tmp_path / 'site.toml'}")
    hospital = made(
        tmp_path / "hospital",
        objects,
        secrets={
            "fedpath-kit": secret_of(credentials / "kits" / "A"),
            "fedpath-tables": {"manifest.csv": (federation.site("A") / "manifest.csv").read_bytes()},
        },
        claims={"lung-fedpath-site-features": federation.site("A") / "features"},
        here={},
    )

    # The hospital first: alive from the beginning, ready when it has found the coordinator.
    def soon(condition: Callable[[], bool], what: str) -> None:
        def there() -> bool:
            for name in ("site", "server"):
                assert not (federation.folder / f"{name}.log").exists() or federation.ended(name) is None, (
                    federation.output(name)
                )
            return condition()

        wait_until(there, what, deadline_s=100)

    federation.start("site", hospital.arguments)
    soon(lambda: hospital.is_fine("startupProbe"), "the agent has started")
    soon(lambda: "waiting" in federation.output("site"), "it waits for the coordinator")
    assert hospital.is_fine("livenessProbe")
    assert not hospital.is_fine("readinessProbe")
    assert hospital.tested().returncode != 0
    assert "cannot be reached" in hospital.tested().stderr

    federation.start("server", coordinator.arguments)
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        soon(partial(coordinator.is_fine, probe), f"the coordinator's {probe}")
    soon(lambda: hospital.is_fine("readinessProbe"), "the agent is connected")
    assert hospital.is_fine("livenessProbe")

    for pod in (coordinator, hospital):
        done = pod.tested()
        assert done.returncode == 0, done.stdout + done.stderr

    page = coordinator.ports["page"]
    assert _status(page, "/", {"Authorization": f"Bearer {TOKEN}"}) == 200
    assert _status(page, "/", {}) in (303, 401)

    # A certificate that is renewed, as cert-manager does it; the agent stays.
    first = ssl.get_server_certificate(("127.0.0.1", federation.port))
    for file in (credentials / "server").glob("server.*"):
        file.unlink()
    provision(load_federation(federation.toml), credentials)
    coordinator.files.replace_secret("fedpath-server-tls", _tls(credentials))
    soon(lambda: ssl.get_server_certificate(("127.0.0.1", federation.port)) != first, "the new certificate is shown")
    assert ssl.get_server_certificate(("127.0.0.1", federation.port)).encode() == _tls(credentials)["tls.crt"]
    assert hospital.is_fine("readinessProbe")

    # As a pod is ended.
    for name in ("site", "server"):
        federation.signal(name, signal.SIGTERM)
        assert federation.wait(name) == 130
