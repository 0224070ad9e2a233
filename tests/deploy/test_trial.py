"""docs/containers.md: its commands leave what compose.yaml binds, and the files in them can be read."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from deploy_files import COMPOSE, ROOT, check_command, compose
from page_blocks import as_root, block

from fedpath.client.agent.kit import load_kit
from fedpath.core.config import load_federation, load_site
from fedpath.server.provision import load_server_credentials

_DOCKER = """#!/bin/sh
echo "$@" >> docker.log
case "$*" in
  *" provision "*) while [ "$1" != provision ]; do shift; done; exec {python} -m fedpath.cli "$@" ;;
  *" slides draw "*) while [ "$1" != draw ]; do shift; done; mkdir "$2" ;;
esac
"""
"""In place of Docker: notes what it is asked for, and does what the next command stands on."""


def test_the_trial_of_the_page(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "docker").write_text(_DOCKER.format(python=sys.executable))
    (programs / "docker").chmod(0o755)
    (programs / "chown").symlink_to(shutil.which("true") or "/bin/true")
    trial = tmp_path / "trial"
    trial.mkdir()
    done = subprocess.run(
        ["bash", "-ec", as_root(block("containers.md", "Try it on one machine", has="compose up"))],
        cwd=trial,
        env=os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "FEDPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (trial / "compose.yaml").read_bytes() == (COMPOSE / "compose.yaml").read_bytes()
    for service in compose(trial / "compose.yaml")["services"].values():
        for volume in service["volumes"]:
            assert volume["type"] == "volume" or (trial / volume["source"]).is_dir(), volume["source"]

    federation = load_federation(trial / "coordinator" / "federation.toml")
    load_server_credentials(federation.server.credentials, federation.federation.sites)
    assert federation.server.address == "coordinator:9443"  # the name of the service
    for site in federation.federation.sites:
        config, kit = load_site(trial / site / "site.toml"), load_kit(trial / site / "kit")
        assert (config.site.name, kit.site, kit.address) == (site, site, federation.server.address)
        assert str(config.state) == "/var/lib/fedpath"

    # What is asked of fedpath in containers are commands that exist.
    asked = [line.split() for line in (trial / "docker.log").read_text().splitlines()]
    for words in asked:
        image = next((place for place, word in enumerate(words) if word.startswith("fedpath-")), None)
        if image is not None:
            check_command(words[image + 1 :])
        elif "fedpath" in words:
            check_command(words[words.index("fedpath") + 1 :])
    assert sum("encode" in words for words in asked) == len(federation.federation.sites)
