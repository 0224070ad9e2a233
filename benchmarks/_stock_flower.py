"""The same rounds in stock Flower: SuperLink with TLS, node keys and SQLite, two SuperNodes, FedAvg, a tiny model."""

import itertools
import json
import os
import shlex
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from _federation import free_port
from cryptography.hazmat.primitives import serialization

from fedpath.core.config.federation import FederationConfig
from fedpath.server import certificates
from fedpath.server.provision import provision

_DEADLINE_S = 600.0

_PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "tiny"
version = "1.0.0"
dependencies = []
[tool.flwr.app]
publisher = "benchmark"
[tool.flwr.app.components]
serverapp = "tiny.server:app"
clientapp = "tiny.client:app"
[tool.flwr.app.config]
rounds = 1
times = ""
parameters = 1
"""

_SERVER = """\
import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid, context):
    config = context.run_config
    times = []

    def note(server_round, arrays):
        times.append(time.time())
        Path(config["times"]).write_text(json.dumps(times))

    FedAvg(fraction_evaluate=0.0, min_train_nodes=2, min_available_nodes=2).start(
        grid=grid,
        initial_arrays=ArrayRecord([np.zeros(config["parameters"], dtype=np.float32)]),
        num_rounds=config["rounds"],
        evaluate_fn=note,
    )
"""

_CLIENT = """\
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    arrays = message.content["arrays"]
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
"""


def round_seconds(folder: Path, *, rounds: int, parameters: int) -> list[float]:
    """Run ``rounds`` rounds and return the seconds between one round's end and the next's."""
    folder.mkdir(parents=True)
    port = free_port()
    config = FederationConfig.model_validate(
        {
            "federation": {"name": "stock", "sites": ["A", "B"]},
            "server": {"address": f"127.0.0.1:{port}"},
            "task": {"labels": ["a", "b"]},
            "features": {"encoder": "none", "width": 1},
        }
    )
    provision(config, folder)
    authority = folder / "ca" / "ca.crt"
    home = folder / "home"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "tls"\n[superlink.tls]\naddress = "127.0.0.1:{port}"\n'
        f'root-certificates = "{authority}"\n'
    )
    times = folder / "times.json"
    _write_app(folder / "app")
    environment = os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    with ExitStack() as stack:
        start = _Starter(stack, folder, environment)
        start(
            "superlink",
            f"flower-superlink --host 127.0.0.1 --port {port} --ssl-ca-certfile {authority} "
            f"--ssl-certfile {folder}/server/server.crt --ssl-keyfile {folder}/server/server.key "
            f"--enable-supernode-auth --database {folder}/state.db --disable-runtime-dependency-installation",
        )
        for site in "AB":
            public = folder / "server" / "sites" / f"{site}.pub"
            ssh = folder / f"{site}.ssh.pub"
            ssh.write_bytes(
                certificates.read_public_key(public).public_bytes(
                    serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
                )
            )
            _insist(["flwr", "supernode", "register", str(ssh), "tls"], environment)
        for site in "AB":
            key = folder / f"{site}.ssh"
            key.touch(mode=0o600)
            key.write_bytes(
                certificates.read_key(folder / "kits" / site / "node.key").private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
                )
            )
            start(
                f"supernode-{site}",
                f"flower-supernode --superlink 127.0.0.1:{port} --root-certificates {authority} "
                f"--auth-supernode-private-key {key} --port {free_port()}",
            )
        settings = f'rounds={rounds} times="{times}" parameters={parameters}'
        _insist(["flwr", "run", str(folder / "app"), "tls", "--run-config", settings], environment)
        # The strategy also notes the time before round 1.
        _wait_until(lambda: times.exists() and len(_read(times)) == rounds + 1, start)
    noted = _read(times)
    return [after - before for before, after in itertools.pairwise(noted)]


class _Starter:
    """Starts processes that end with the benchmark."""

    def __init__(self, stack: ExitStack, folder: Path, environment: dict[str, str]) -> None:
        self._stack, self._folder, self._environment = stack, folder, environment
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __call__(self, name: str, command: str) -> None:
        log = self._stack.enter_context((self._folder / f"{name}.log").open("wb"))
        process = subprocess.Popen(shlex.split(command), stdout=log, stderr=subprocess.STDOUT, env=self._environment)
        self._processes[name] = process
        self._stack.callback(_end, process)

    def check(self) -> None:
        """Give up when one of them has ended."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise SystemExit(f"{name} ended: {(self._folder / f'{name}.log').read_text()[-2000:]}")


def _write_app(folder: Path) -> None:
    (folder / "tiny").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(_PYPROJECT)
    (folder / "tiny" / "__init__.py").touch()
    (folder / "tiny" / "server.py").write_text(_SERVER)
    (folder / "tiny" / "client.py").write_text(_CLIENT)


def _insist(command: list[str], environment: dict[str, str]) -> None:
    """Run a command until the SuperLink has taken it."""
    deadline = time.monotonic() + 60
    while True:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"{' '.join(command[:3])} failed: {done.stdout}{done.stderr}")
        time.sleep(0.5)


def _wait_until(done, start: _Starter) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not done():
        start.check()
        if time.monotonic() > deadline:
            raise SystemExit(f"stock Flower was not done after {_DEADLINE_S:.0f} s")
        time.sleep(0.1)


def _read(path: Path) -> list[float]:
    try:
        values: list[float] = json.loads(path.read_text())
    except json.JSONDecodeError:  # being written
        return []
    return values


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
