"""What keeps a hospital from joining, or a coordinator from starting: one line, the remedy, an exit code."""

import signal
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest
from federation import Federation

from fedpath.core.config import load_federation
from fedpath.server import certificates
from fedpath.server.provision import provision

pytestmark = pytest.mark.system


def test_faults_of_a_joining_site(federation: Federation, tmp_path: Path) -> None:
    def fails(name: str, arguments: list, code: int, *words: str, before: tuple[str, ...] = ()) -> None:
        federation.start(name, arguments, before=before)
        assert federation.wait(name) == code, federation.output(name)
        lines = federation.output(name).strip().splitlines()
        assert [kind for line in lines if (kind := line.split(":")[0]) != "page"] == ["error", "remedy"], lines
        for word in words:
            assert word in federation.output(name)

    join = federation.join_arguments
    fails("unreachable", [*join("A"), "--wait", "0"], 4, f"127.0.0.1:{federation.port} cannot be reached")

    federation.configure(server="join_timeout_s = 300")
    federation.start_server()
    federation.wait_for_output("server", "waiting: 0 of 3")

    other = tmp_path / "other"
    provision(load_federation(federation.toml), other)
    fails("wrong-authority", join("A", kit=other / "kits" / "A"), 4, "is not this federation's")

    stranger = tmp_path / "stranger"
    stranger.mkdir()
    for file in (federation.credentials / "kits" / "A").iterdir():
        (stranger / file.name).write_bytes(file.read_bytes())
    certificates.write_key(stranger / "node.key", certificates.new_key())
    fails("unregistered", join("A", kit=stranger), 4, "does not know the key of site A")

    ahead = ("faketime", "-f", "+60s")
    fails("clock-ahead", join("A"), 4, "clock is", "ahead of", "NTP", before=ahead)
    behind = ("faketime", "-f", "-400s")
    fails("clock-behind", join("A"), 4, "clock is", "behind", "NTP", before=behind)
    long_behind = ("faketime", "-f", "-30d")
    fails("long-behind", join("A"), 4, "not valid at this machine's time", "NTP", before=long_behind)

    fails("wrong-name", join("B", kit=federation.credentials / "kits" / "A"), 2, "the kit is for site 'A'")
    fails("port", ["server", "start", "--config", federation.toml, "--dir", tmp_path / "second"], 2, "cannot listen on")

    # None of this has disturbed the coordinator, and Ctrl-C ends it at once.
    federation.signal("server", signal.SIGINT)
    assert federation.wait("server", 20) == 130
    assert "Traceback" not in federation.output("server")


def test_who_is_missing_is_said_and_waiting_ends(federation: Federation) -> None:
    federation.configure(server="join_timeout_s = 12\ngrace_s = 1", min_sites=2)
    # B is up and waiting before the coordinator's clock starts to run.
    federation.start_sites("B")
    federation.wait_for_output("B", "waiting up to")
    federation.start_server()
    assert federation.wait("server") == 6
    assert "missing: A, C" in federation.output("server")
    assert "error: 1 of 2 sites joined within 12 s; missing: A, C" in federation.output("server")


def test_the_outside_sees_the_fleet_api_alone(federation: Federation) -> None:
    federation.configure(server="join_timeout_s = 300")
    federation.start_server()
    federation.wait_for_output("server", "waiting: 0 of 3")
    context = ssl.create_default_context(cafile=str(federation.credentials / "ca" / "ca.crt"))
    with httpx.Client(base_url=f"https://127.0.0.1:{federation.port}", verify=context) as client:
        assert client.get("/health").status_code == 200
        for path in ("/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/acquire-task"):
            assert client.post(path, content=b"").status_code == 404
        assert client.get("/docs").status_code == client.get("/openapi.json").status_code == 404
        # Without a site's key nothing of the fleet API answers either.
        protobuf = {"content-type": "application/x-protobuf", "accept": "application/x-protobuf"}
        assert client.post("/v1/fleet/pull-messages", content=b"", headers=protobuf).status_code == 401
        assert client.post("/v1/fleet/push-object", content=b"x" * 9_000_000).status_code == 413
    # The chain is one that strict verifiers accept.
    authority, server = federation.credentials / "ca" / "ca.crt", federation.credentials / "server" / "server.crt"
    subprocess.run(["openssl", "verify", "-x509_strict", "-CAfile", authority, server], check=True)
