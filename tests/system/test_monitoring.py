"""A coordinator and an agent, watched while they work: scraped over HTTP, probed over HTTP and gRPC."""

import http.client
import json
import re
import signal
import ssl
import subprocess
import urllib.error
import urllib.request
from typing import Any

import grpc
import pytest
from federation import Federation, wait_until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from fedpath.client.monitoring.rows import ROWS as SITE_ROWS
from fedpath.core.monitoring.metrics import Row
from fedpath.server.monitoring.rows import ROWS as SERVER_ROWS

pytestmark = pytest.mark.system
WATCHED = ["--metrics-port", "0", "--health-port", "0"]


class Port:
    """What watches one process."""

    def __init__(self, federation: Federation, name: str) -> None:
        federation.wait_for_output(name, "health (gRPC) on")
        output = federation.output(name)
        metrics = re.search(r"^metrics on (http://127\.0\.0\.1:\d+)/metrics$", output, flags=re.MULTILINE)
        health = re.search(r"^health \(gRPC\) on (127\.0\.0\.1:\d+)$", output, flags=re.MULTILINE)
        assert metrics is not None
        assert health is not None
        self.url, self.health = metrics[1], health[1]

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=20) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def text(self) -> str:
        status, text = self.get("/metrics")
        assert status == 200
        return text

    def value(self, name: str, **labels: str) -> float | None:
        for family in text_string_to_metric_families(self.text()):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return float(sample.value)
        return None

    def probe(self, service: str) -> str:
        """As Kubernetes does."""
        with grpc.insecure_channel(self.health) as channel:
            request = health_pb2.HealthCheckRequest(service=service)
            status = health_pb2_grpc.HealthStub(channel).Check(request, timeout=20).status
            return str(health_pb2.HealthCheckResponse.ServingStatus.Name(status))


@pytest.fixture
def watched(federation: Federation) -> tuple[Federation, Port, Port]:
    """A federation in the middle of its rounds; its coordinator's port, and hospital A's."""
    federation.configure(rounds=500, min_sites=2, training="local_epochs = 2", server="grace_s = 0")
    federation.start("server", [*federation.server_arguments(), *WATCHED])
    federation.start("A", [*federation.join_arguments("A"), "--stay", *WATCHED])
    federation.start_sites("B")
    federation.wait_for_output("server", "round 2: counted A, B")
    return federation, Port(federation, "server"), Port(federation, "A")


def test_a_federation_is_watched(watched: tuple[Federation, Port, Port]) -> None:
    federation, server, site = watched
    _everything_is_exported_as_it_is_documented(server, SERVER_ROWS)
    _everything_is_exported_as_it_is_documented(site, SITE_ROWS)
    _no_label_holds_anything_of_a_patient(federation, server.text() + site.text())
    _the_figures_are_those_of_the_run(federation, server, site)
    _who_is_refused_is_counted(federation, server)
    for port in (server, site):
        assert [port.get(path)[0] for path in ("/health", "/health/ready")] == [200, 200]
        assert json.loads(port.get("/health")[1])["status"] == "ok"
        assert {port.probe(service) for service in ("", "fedpath", "fedpath.ready")} == {"SERVING"}

    # Without its coordinator a hospital's agent lives on, and is not ready.
    federation.signal("server", signal.SIGKILL)
    wait_until(lambda: site.get("/health/ready")[0] == 503, "the agent says that nobody is there")
    status, text = site.get("/health")
    assert status == 200
    assert json.loads(text)["status"] == "degraded"
    assert "cannot be reached" in json.loads(text)["checks"]["coordinator"]["says"]
    wait_until(lambda: site.probe("fedpath.ready") == "NOT_SERVING", "gRPC says the same")
    assert site.probe("fedpath") == site.probe("") == "SERVING"
    assert site.value("fedpath_client_connected") == 0
    federation.signal("A", signal.SIGINT)
    assert federation.wait("A") == 130
    assert "Traceback" not in federation.output("A")
    assert not list(federation.site("A").glob("state/*.sock"))


def _everything_is_exported_as_it_is_documented(port: Port, rows: tuple[Row, ...]) -> None:
    text = port.text()
    done = subprocess.run(["promtool", "check", "metrics"], input=text, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
    known = {row.name.removesuffix("_total"): row for row in rows}
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith("process_"):
            continue
        row = known[family.name]
        assert (family.type, family.documentation) == (row.kind, row.help)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(row.labels), sample
            found.setdefault(row.name, set()).add(sample.name)
    # Of these there is nothing in a federation of small models on CPUs and a run without stages.
    absent = {row.name for row in rows} - found.keys()
    assert absent <= {"fedpath_run_stage", "fedpath_client_gpu_memory_bytes", "fedpath_client_gpu_utilization_ratio"}


def _no_label_holds_anything_of_a_patient(federation: Federation, text: str) -> None:
    values = {
        value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        for name, value in sample.labels.items()
        if name != "le"
    }
    assert {"A", "B", "training", "state"} <= values
    for value in values:
        assert not re.search(r"/|\\|patient|slide-|\.h5|\.csv|\.toml", value), value
    assert str(federation.folder) not in text
    for site in federation.sites:
        manifest = (federation.site(site) / "manifest.csv").read_text().splitlines()[1:]
        assert not [line for line in manifest if any(word in text for word in line.split(",")[:2])]


def _the_figures_are_those_of_the_run(federation: Federation, server: Port, site: Port) -> None:
    (run,) = (folder.name for folder in (federation.state / "runs").iterdir())
    rounds = server.value("fedpath_rounds_total", run=run, outcome="finished")
    assert rounds is not None
    assert rounds >= 2
    whole = server.value("fedpath_round_duration_seconds_count", run=run, phase="whole")
    assert whole is not None
    assert whole >= rounds
    assert server.value("fedpath_run_active", run=run) == 1
    assert server.value("fedpath_rounds_planned", run=run) == 500
    assert server.value("fedpath_registry_runs", state="running") == 1
    assert [server.value("fedpath_site_online", site=name) for name in "ABC"] == [1, 1, 0]
    assert server.value("fedpath_site_last_seen_timestamp_seconds", site="C") is None
    skew = server.value("fedpath_site_clock_skew_seconds", site="A")
    assert skew is not None
    assert -60 < skew <= 0
    assert site.value("fedpath_client_connected") == 1
    samples, trained = site.value("fedpath_client_samples_total"), site.value("fedpath_client_round")
    assert samples is not None
    assert trained is not None
    assert samples >= (trained - 1) * 8 * 2
    for role in ("to_site", "from_site"):
        count = server.value("fedpath_transfer_bytes_total", site="A", direction=role)
        assert count is not None
        assert count > 1000
    received = site.value("fedpath_client_transfer_bytes_total", direction="received")
    assert received is not None
    assert received > 1000


def _who_is_refused_is_counted(federation: Federation, server: Port) -> None:
    context = ssl.create_default_context(cafile=str(federation.credentials / "kits" / "A" / "ca.crt"))

    def ask(method: str, path: str, body: Any = None) -> int:
        connection = http.client.HTTPSConnection(federation.host, federation.port, context=context, timeout=20)
        try:
            connection.request(method, path, body)
            return connection.getresponse().status
        finally:
            connection.close()

    assert server.value("fedpath_auth_failures_total", reason="unregistered") == 0
    assert ask("POST", "/v1/fleet/activate-node", b"") == 401
    assert ask("GET", "/metrics") == 404  # the hospitals' port shows nothing of all this
    assert server.value("fedpath_auth_failures_total", reason="unregistered") == 1
    assert server.value("fedpath_requests_refused_total", reason="not_served") == 1
