"""deploy/systemd as docs/systemd.md installs it, under a real systemd: rounds, a copy meanwhile, going on from it."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import fedpath
from deploy_files import ROOT
from federation import Federation, wait_until
from machine import Machine, machine
from namespaces import needs_root
from page_blocks import as_root, block
from sealed import PREFIX, Root

pytestmark = [pytest.mark.faults, needs_root]
SERVER, SITE = "fedpath-server.service", "fedpath-site@A.service"


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Machine]:
    """A machine with both roles, installed as the page says; nothing is started."""
    with Federation(tmp_path, ["A"], host="localhost") as made:
        made.configure(rounds=60)
        made.toml.write_text(made.toml.read_text().replace(f"localhost:{made.port}", "localhost:9443"))
        told = fedpath("provision", "--config", made.toml, "--out", made.credentials)
        assert told.code == 0, told.err
    data = tmp_path / "data"
    shutil.copytree(made.site("A"), data, ignore=shutil.ignore_patterns("site.toml"))
    (tmp_path / "site.toml").write_text(
        'state = "/var/lib/fedpath-site/A"\n[site]\nname = "A"\n'
        '[data]\nmanifest = "/srv/slides/manifest.csv"\nfeatures = "/srv/slides/features"\n'
    )
    shutil.copytree(made.credentials / "kits" / "A", tmp_path / "kit-A")
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    folders = {"/srv/slides": data, "/srv/install": tmp_path}
    with machine(tmp_path, Root(tmp_path / "root", folders, frozenset(folders))) as host:
        code = f"PYTHONPATH={os.environ.get('PYTHONPATH', '')}\n"
        (tmp_path / "server.env").write_text(code)
        (tmp_path / "site.env").write_text(f"{code}FEDPATH_METRICS_PORT=9466\n")  # the coordinator has 9464
        host.install(tmp_path / "server.env", "/etc/fedpath/fedpath-server.env")
        host.install(tmp_path / "site.env", "/etc/fedpath/sites/A/site.env")
        for commands in (
            block("systemd.md", "Install", has="sysusers").partition("constraints.txt torch")[2].partition("\n")[2],
            block("systemd.md", "A coordinator", has="daemon-reload"),
            block("systemd.md", "A hospital", has="daemon-reload").replace("journalctl -u fedpath-site@A -f", ""),
        ):
            text = "\n".join(line for line in as_root(commands).splitlines() if "/bin/pip" not in line)
            host("bash", "-ec", f"cd /srv/install\n{text}")
        yield host


def test_units_as_written(installed: Machine) -> None:
    host = installed
    host.wait_for_line(SITE, "joined federation test at localhost:9443")
    host.wait_for_line(SERVER, "serving the queue at localhost:9443")
    code = ["env", f"PYTHONPATH={os.environ.get('PYTHONPATH', '')}", f"{PREFIX}/bin/fedpath"]
    submit = [*code, "run", "submit", "--config", "/etc/fedpath/federation.toml", "--dir", "/var/lib/fedpath"]
    host("runuser", "-u", "fedpath", "--", *submit)
    host.wait_for_line(SERVER, "round 2: counted A")
    host.wait_for_line(SITE, "round 2: trained")

    # What it may: seen from within its own name spaces, by the user it runs as.
    for unit in (SERVER, SITE):
        process = host.show(unit, "MainPID")
        status = host("cat", f"/proc/{process}/status")
        said = dict(re.findall(r"^(\w+):\s*(.+)$", status, flags=re.MULTILINE))
        assert (int(said["CapEff"], 16), int(said["CapBnd"], 16), said["NoNewPrivs"]) == (0, 0, "1")
        assert said["Seccomp"] == "2"
        host("nsenter", "-t", process, "-m", "touch", "/etc/fedpath/written", fails=True)
    host("runuser", "-u", "fedpath", "--", "cat", "/etc/fedpath/sites/A/kit/node.key", fails=True)

    # A copy while it runs; the folder is lost; a coordinator on the copy goes on, with the hospital that is there.
    host("bash", "-ec", as_root(block("systemd.md", "Backup and restore", has="start fedpath-backup")))
    host("systemctl", "stop", SERVER)
    assert host.show(SERVER, "Result") == "success"
    assert host.show(SERVER, "ExecMainStatus") == "130"
    (copy,) = host("ls", "/var/backups/fedpath").split()
    assert host("stat", "-c", "%a %U", f"/var/backups/fedpath/{copy}").split() == ["600", "fedpath"]
    restore = as_root(block("systemd.md", "Backup and restore", has="tar -xf"))
    host("bash", "-ec", re.sub(r"fedpath-\d+T\d+Z\.tar", copy, restore))
    host.wait_for_line(SERVER, "goes on after round")
    (done,) = re.findall(r"goes on after round (\d+)", host.journal(SERVER))
    assert int(done) >= 2
    wait_until(
        lambda: (
            host.journal(SERVER).count(f"round {int(done) + 1}: counted A") >= 1
            and f"round {int(done) + 2}: counted A" in host.journal(SERVER).partition("goes on after")[2]
        ),
        "the run goes on",
    )
    assert host.show("fedpath-backup.timer", "ActiveState") == "active"
    host("systemctl", "stop", SERVER, SITE)
    assert "Traceback" not in host.journal("fedpath-*")
    assert host.show(SITE, "Result") == "success"

    # What starting again cannot mend is not started again.
    host("sed", "-i", "s/rounds/roundz/", "/etc/fedpath/federation.toml")
    host("systemctl", "start", SERVER)
    wait_until(lambda: host.state(SERVER) == "failed", "the coordinator has failed")
    assert host.show(SERVER, "ExecMainStatus") == "2"
    assert host.show(SERVER, "NRestarts") == "0"
    assert "did you mean 'rounds'?" in host.journal(SERVER)
