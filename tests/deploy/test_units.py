"""The units: systemd itself accepts them, finds them closed, and the commands in them exist."""

import re
import subprocess
from pathlib import Path

import pytest
from deploy_files import ROOT, SYSTEMD, Unit, check_command

import fedpath.core.errors as errors

SERVICES = sorted(SYSTEMD.glob("*.service"))
EXPOSURE = {"fedpath-server.service": 1.5, "fedpath-site@.service": 2.0, "fedpath-backup.service": 0.8}
"""The most that `systemd-analyze security` may say, of 10."""


def run(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def verify(folder: Path) -> "subprocess.CompletedProcess[str]":
    """Let systemd load all units of a folder, where the programs are that they start."""
    root = folder / "root"
    for program in ("opt/fedpath/bin/fedpath", "opt/fedpath/bin/python"):
        path = root / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    units = root / "etc" / "systemd" / "system"
    units.mkdir(parents=True)
    for path in folder.glob("*.*"):
        instance = path.name.replace("@.", "@A.")
        text = re.sub(r"=/(opt/fedpath/\S+)", rf"={root}/\1", path.read_text())
        (units / instance).write_text(text)
    return run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *sorted(units.iterdir()))


def copy(folder: Path, **changes: str) -> Path:
    """Copy the units to ``folder``, with text replaced."""
    for path in [*SERVICES, *SYSTEMD.glob("*.timer")]:
        text = path.read_text()
        for what, instead in changes.items():
            text = text.replace(what, instead)
        (folder / path.name).write_text(text)
    return folder


def test_systemd_accepts_them(tmp_path: Path) -> None:
    done = verify(copy(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("what", "instead", "said"),
    [
        ("ProtectSystem", "ProtectsSystem", "Unknown key 'ProtectsSystem'"),
        ("@system-service", "@system-services", "Unknown system call group"),
        ("Restart=on-failure", "Restart=on-fail", "Failed to parse"),
        ("fedpath server serve", "fedpaths server serve", "is not executable"),
    ],
)
def test_systemd_finds_what_is_wrong(tmp_path: Path, what: str, instead: str, said: str) -> None:
    done = verify(copy(tmp_path, **{what: instead}))
    assert said in done.stderr


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_services_are_closed(path: Path) -> None:
    done = run("systemd-analyze", "security", "--offline=true", "--no-pager", path)
    (exposure,) = re.findall(r"Overall exposure level for .*: ([\d.]+)", done.stdout)
    assert float(exposure) <= EXPOSURE[path.name], done.stdout


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_commands_and_flags_exist(path: Path) -> None:
    words = [word.replace("${FEDPATH_METRICS_PORT}", "9464").replace("%i", "A") for word in Unit(path).command]
    if words[0].endswith("/fedpath"):
        check_command(words[1:])
    else:
        assert words[:2] == ["/opt/fedpath/bin/python", "/usr/local/bin/fedpath-backup"]
        script = ROOT / "deploy" / "backup" / "backup.py"
        assert run(words[0].replace("/opt/fedpath/bin/", ""), script, "--help").returncode == 0
        known = script.read_text()
        assert all(f'"{word}"' in known for word in words if word.startswith("--"))


@pytest.mark.parametrize("name", ["fedpath-server.service", "fedpath-site@.service"])
def test_what_starting_again_cannot_mend_is_not_started_again(name: str) -> None:
    unit = Unit(SYSTEMD / name)
    codes = {
        kind: kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.FedpathError)
    }
    prevented = set(map(int, unit["RestartPreventExitStatus"].split()))
    assert unit["Restart"] == "on-failure"
    assert {codes[errors.ConfigError], codes[errors.DataError]} <= prevented
    assert not prevented & {1, codes[errors.ConnectionFailedError], codes[errors.FederationError]}
    assert (codes[errors.RefusedError] in prevented) == ("site" in name)
    assert int(unit["SuccessExitStatus"]) == codes[errors.StoppedError]


def test_the_agent_gets_its_kit_as_credentials() -> None:
    from fedpath.core.config.kit import AUTHORITY_FILE, KIT_FILE, NODE_KEY_FILE

    unit = Unit(SYSTEMD / "fedpath-site@.service")
    given = dict(text.split(":", 1) for text in unit.settings["LoadCredential"])
    assert given == {name: f"/etc/fedpath/sites/%i/kit/{name}" for name in (KIT_FILE, AUTHORITY_FILE, NODE_KEY_FILE)}
    assert unit.command[unit.command.index("--kit") + 1] == "${CREDENTIALS_DIRECTORY}"


def test_the_user_can_be_made(tmp_path: Path) -> None:
    """With systemd's own tool, in a root of its own."""
    (tmp_path / "etc").mkdir()
    done = run("systemd-sysusers", f"--root={tmp_path}", SYSTEMD / "fedpath.sysusers")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^fedpath:", (tmp_path / "etc" / "passwd").read_text(), flags=re.MULTILINE)
