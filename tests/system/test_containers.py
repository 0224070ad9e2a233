"""deploy/compose as written: its commands, users, folders and limits, given to real processes without an engine.

Each service has a root of its own that is read-only, user 10001 without rights, the volumes and file systems in memory
that compose.yaml names, the environment of the image, and a network of its own; a bridge joins them, and nothing else.
"""

import os
import re
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from command import fedpath
from deploy_files import COMPOSE, ROOT, Dockerfile, compose
from federation import Federation, wait_until
from namespaces import needs_root
from sealed import PREFIX, Root, Sealed, bridged

pytestmark = [pytest.mark.faults, needs_root]
USER = 10001
IMAGES = {"coordinator": "server", "hospital-a": "site", "hospital-b": "site"}


@dataclass
class Trial:
    """compose.yaml, with the folders that docs/containers.md asks for."""

    folder: Path
    services: dict[str, Any]
    dockerfile: Dockerfile

    def root(self, name: str, addresses: Mapping[str, str]) -> Root:
        """What the container of a service would have."""
        service = self.services[name]
        folders, read_only = {}, set()
        for volume in service["volumes"]:
            source = self.folder / ("volumes" if volume["type"] == "volume" else "") / volume["source"]
            folders[volume["target"]] = source
            if volume.get("read_only"):
                read_only.add(volume["target"])
        memory = dict(text.split(":", 1) for text in service["tmpfs"])
        memory["/dev/shm"] = f"size={service['shm_size']},mode=1777"
        return Root(
            self.folder / f"root-{name}",
            folders,
            frozenset(read_only),
            memory,
            hosts=addresses,
            sealed=service["read_only"],
        )

    def environment(self, name: str) -> dict[str, str]:
        """The image's, the service's, and where this test's fedpath is."""
        image = self.dockerfile.environment(IMAGES[name])
        image["PATH"] = image["PATH"].replace("$PATH", "/usr/local/bin:/usr/bin:/bin")
        own = {key: os.environ[key] for key in ("PYTHONPATH",) if key in os.environ}
        return image | self.services[name]["environment"] | own

    def words(self, name: str) -> str:
        """What starts a service's process in its root."""
        service = self.services[name]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        uid, gid = service["user"].split(":")
        without = f"--reuid {uid} --regid {gid} --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all"
        variables = " ".join(f"{key}='{value}'" for key, value in self.environment(name).items())
        command = " ".join(["fedpath", *service["command"]])
        return f"exec setpriv {without} env --chdir=/var/lib/fedpath -i {variables} {command}"

    def is_healthy(self, name: str, process: Sealed) -> bool:
        """Ask as the engine would."""
        how, *words = self.services[name]["healthcheck"]["test"]
        assert how == "CMD"
        return process.run(*words, environment={"PATH": f"{PREFIX}/bin:/usr/bin"}).returncode == 0


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    """The trial of docs/containers.md: one coordinator, two hospitals, their credentials and small cohorts."""
    folder = tmp_path / "trial"
    with Federation(tmp_path, ["A", "B"], host="coordinator") as made:
        made.configure(rounds=1, server='listen = "0.0.0.0:9443"')
        toml = made.toml.read_text().replace(f"coordinator:{made.port}", "coordinator:9443")
        made.toml.write_text(toml)
        told = fedpath("provision", "--config", made.toml, "--out", made.credentials)
        assert told.code == 0, told.err
        (folder / "coordinator").mkdir(parents=True)
        shutil.copy(made.toml, folder / "coordinator")
        shutil.copytree(made.credentials / "server", folder / "coordinator" / "credentials" / "server")
        for site in "AB":
            shutil.copytree(made.credentials / "kits" / site, folder / site / "kit")
            shutil.copytree(made.site(site), folder / f"data-{site}", ignore=shutil.ignore_patterns("site.toml"))
            (folder / site / "site.toml").write_text(
                f'state = "/var/lib/fedpath"\n[site]\nname = "{site}"\n'
                '[data]\nmanifest = "/data/manifest.csv"\nfeatures = "/data/features"\n'
            )
    services = compose(COMPOSE / "compose.yaml")["services"]
    for volume in ("state", "state-a", "state-b"):
        (folder / "volumes" / volume).mkdir(parents=True)
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, USER, USER)
        path.chmod(0o700 if path.is_dir() else 0o600)
    for path in tmp_path.parents:  # of pytest's own, which are its user's alone
        if path.stat().st_uid == os.geteuid() and not path.stat().st_mode & 0o001 and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o011)
    return Trial(folder, services, Dockerfile((ROOT / "deploy" / "docker" / "Dockerfile").read_text()))


def facts(process: Sealed) -> dict[str, str]:
    """What the kernel says of a service's process."""
    return dict(re.findall(r"^(\w+):\s*(.+)$", Path(f"/proc/{process.first()}/status").read_text(), flags=re.MULTILINE))


def test_compose_as_written(trial: Trial, tmp_path: Path) -> None:
    with bridged(list(trial.services)) as networks, ExitStack() as stack:
        addresses = {name: address for name, (_, address) in networks.items()}
        running: dict[str, Sealed] = {}
        for name in trial.services:
            running[name] = stack.enter_context(
                Sealed(trial.root(name, addresses), networks[name][0], tmp_path / f"{name}.log", trial.words(name))
            )
        submit = ["run", "submit", "--config", "/etc/fedpath/federation.toml", "--dir", "/var/lib/fedpath"]
        running["coordinator"].wait_for_output("serving the queue at 0.0.0.0:9443")

        # As `docker compose exec` does: the user and the environment of the service.
        def execute(name: str, *words: str) -> str:
            as_user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
            done = running[name].run(*as_user, *words, environment=trial.environment(name))
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        execute("coordinator", f"{PREFIX}/bin/fedpath", *submit)
        for name, process in running.items():
            said = facts(process)
            assert said["Uid"].split() == [str(USER)] * 4, name
            assert (int(said["CapEff"], 16), int(said["CapBnd"], 16), said["NoNewPrivs"]) == (0, 0, "1")
            assert process.run("touch", "/written", "/opt/fedpath/written").returncode != 0
        running["coordinator"].wait_for_output("is finished: best round")
        for name, process in running.items():
            wait_until(partial(trial.is_healthy, name, process), f"{name} is healthy")
        state = trial.folder / "volumes"
        (model,) = (state / "state").glob("runs/*/best.safetensors")
        for site in "ab":
            running[f"hospital-{site}"].wait_for_output("the run is over")
            assert list((state / f"state-{site}").glob("*/federated.safetensors"))
            assert (state / f"state-{site}" / "audit.jsonl").stat().st_uid == USER
        assert model.stat().st_uid == USER
        for process in running.values():
            assert "Traceback" not in process.output()
            assert process.ended() is None
            # As the engine asks it to stop: SIGTERM to the first process.
            os.kill(process.first(), 15)
        for name, process in running.items():
            assert process.wait() == 130, name
