"""What passes the port, counted: of requests as they come, through the listener, Flower and the app of files."""

import hashlib
import http.client
import json
import ssl
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from federation import free_port
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fedpath.core.config import FederationConfig
from fedpath.core.exchange.transfer import Request
from fedpath.core.exchange.wire import Apart
from fedpath.server.certificates import new_key, read_key
from fedpath.server.flower import FlowerServer
from fedpath.server.listener import Listener
from fedpath.server.provision import load_server_credentials, provision

ACTIVATE = "/v1/fleet/activate-node"


@dataclass
class Served:
    server: FlowerServer
    listener: Listener
    key: ec.EllipticCurvePrivateKey
    context: ssl.SSLContext

    def send(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> tuple[int, bytes]:
        connection = http.client.HTTPSConnection("localhost", self.listener.port, context=self.context, timeout=20)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def activate(self, key: ec.EllipticCurvePrivateKey, *, claims: ec.EllipticCurvePrivateKey | None = None,
                 at: float | None = None) -> tuple[int, bytes, bytes]:  # fmt: skip
        """Ask to be connected; ``key`` signs."""
        public = public_key_to_bytes((claims or key).public_key())
        moment = datetime.fromtimestamp(time.time() if at is None else at, UTC).isoformat()
        signature = key.sign(moment.encode(), ec.ECDSA(hashes.SHA256()))
        body = ActivateNodeRequest(public_key=public, heartbeat_interval=60.0).SerializeToString()
        headers = {
            "content-type": "application/protobuf",
            "flwr-public-key": b64encode(public).decode(),
            "flwr-signature": b64encode(signature).decode(),
            "flwr-timestamp": moment,
        }
        return *self.send("POST", ACTIVATE, headers, body), body


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    port = free_port()
    config = FederationConfig.model_validate(
        {
            "federation": {"name": "test", "sites": ["A", "B"]},
            "server": {"address": f"localhost:{port}"},
            "task": {"labels": ["normal", "tumour"]},
            "features": {"encoder": "noise", "width": 8},
        }
    )
    provision(config, tmp_path)
    credentials = load_server_credentials(tmp_path / "server", ["A", "B"])
    listener = Listener(host="127.0.0.1", port=port, certificate=credentials.certificate, key=credentials.key)
    context = ssl.create_default_context(cafile=str(tmp_path / "ca/ca.crt"))
    with FlowerServer(
        database=tmp_path / "flower.db", public_keys=credentials.public_keys, listener=listener
    ) as server:
        yield Served(server, listener, read_key(tmp_path / "kits/A/node.key"), context)


def test_a_sites_requests_are_counted_when_their_signature_is_accepted(served: Served) -> None:
    traffic = served.server.traffic
    before = time.time()
    status, answer, body = served.activate(served.key, at=before + 2.0)
    assert status == 200
    assert traffic.from_site == {"A": len(body), "B": 0}
    assert traffic.to_site == {"A": len(answer), "B": 0}
    assert before <= traffic.seen["A"] <= time.time()
    assert -20.0 < traffic.skew_s["A"] <= 2.0
    assert traffic.seen.keys() == traffic.skew_s.keys() == {"A"}
    assert traffic.denied == {"unregistered": 0, "signature": 0}


def test_whom_the_port_refuses_is_counted_and_not_taken_for_the_site(served: Served) -> None:
    traffic, other = served.server.traffic, new_key()
    assert served.activate(other)[0] == 401
    assert served.send("POST", ACTIVATE, {})[0] == 401
    assert traffic.denied == {"unregistered": 2, "signature": 0}
    assert served.activate(other, claims=served.key)[0] == 401
    assert served.activate(served.key, at=time.time() - 3600)[0] == 401
    assert traffic.denied == {"unregistered": 2, "signature": 2}
    assert traffic.seen == {}
    assert traffic.skew_s == {}


def test_files_of_arrays_are_counted_as_well(served: Served) -> None:
    traffic, now = served.server.traffic, time.time()
    request = Request("GET", "A", Apart("0" * 64, 10), 0)
    headers = request.sign(served.key, now)
    assert served.send("GET", request.path, headers)[0] == 404  # no order speaks of it
    assert traffic.seen == {}
    assert served.send("GET", request.path, request.sign(new_key(), now))[0] == 401
    assert served.send("GET", request.path, headers | {"x-fedpath-site": "Z"})[0] == 401
    assert traffic.denied == {"unregistered": 1, "signature": 1}
    content = json.dumps(list(range(1000))).encode()
    served.server.tensors.incoming.expect("A", object(), 10_000)
    upload = Request("PATCH", "A", Apart(hashlib.sha256(content).hexdigest(), len(content)), 0)
    status, _ = served.send("PATCH", upload.path, upload.sign(served.key, now), content)
    assert status == 200
    assert traffic.from_site["A"] == len(content)
    assert traffic.seen["A"] >= now


def test_what_the_listener_refuses_unread_is_counted(served: Served) -> None:
    assert served.listener.is_up
    assert served.send("GET", "/metrics", {})[0] == 404
    assert served.send("POST", ACTIVATE, {"transfer-encoding": "chunked"}, b"0\r\n\r\n")[0] == 411
    connection = http.client.HTTPSConnection("localhost", served.listener.port, context=served.context, timeout=20)
    connection.putrequest("POST", ACTIVATE)
    connection.putheader("content-length", str(1 << 30))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()
    assert served.listener.refused == {"not_served": 1, "length": 1, "too_large": 1}
    assert served.server.traffic.denied == {"unregistered": 0, "signature": 0}
