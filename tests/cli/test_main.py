"""The command line: help, version, and errors as one line and a remedy."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command import federation_of_tables, fedpath

from fedpath.client.audit import AUDIT_FILE, AuditLog

FEDERATION = federation_of_tables(4)
SITE = '[site]\nname = "A"\n[data]\nmanifest = "manifest.csv"\nfeatures = "features"\n'
GROUPS = ["server", "client", "run", "recipes", "slides", "cohort", "models", "encoders", "explain"]
COMMANDS = ["provision", "train", "demo", "simulate", "init"]


def process(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    environment = os.environ | {"COLUMNS": "200"}
    environment.pop("FEDPATH_DEBUG", None)
    command = [sys.executable, "-m", "fedpath.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_help_names_every_command() -> None:
    for arguments in (["--help"], ["-h"]):
        run = fedpath(*arguments)
        assert run.code == 0
        assert run.err == ""
        for name in (*GROUPS, *COMMANDS):
            assert name in run.out
    bare = fedpath()
    assert bare.code != 0
    assert "Usage" in bare.out + bare.err


@pytest.mark.parametrize("command", [*GROUPS, *COMMANDS, "server start", "client join", "client audit"])
def test_every_command_has_help(command: str) -> None:
    run = fedpath(*command.split(), "--help")
    assert run.code == 0
    assert "Usage: fedpath " + command in " ".join(run.out.split())


def test_version() -> None:
    run = fedpath("--version")
    assert (run.code, run.out) == (0, f"fedpath {importlib.metadata.version('fedpath')}\n")


def test_an_error_is_two_lines_and_a_code(tmp_path: Path) -> None:
    for arguments in (
        ["provision", "--config", tmp_path / "absent.toml"],
        ["server", "start", "--config", tmp_path / "absent.toml", "--dir", tmp_path],
        ["client", "join", "--site", "A", "--kit", tmp_path, "--config", tmp_path / "absent.toml"],
        ["client", "audit", "--config", tmp_path / "absent.toml"],
    ):
        run = fedpath(*arguments)
        run.assert_error(2, f"{tmp_path}/absent.toml: no such file")
        assert run.out == ""


def test_a_process_ends_with_the_errors_code(tmp_path: Path) -> None:
    done = process("provision", "--config", tmp_path / "absent.toml")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (f"error: {tmp_path}/absent.toml: no such file\nremedy: check the path given to --config\n")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = process("--debug", "provision", "--config", tmp_path / "absent.toml")
    assert done.returncode != 0
    assert "Traceback (most recent call last)" in done.stderr
    assert "fedpath.core.errors.ConfigError" in done.stderr
    assert "no such file" in done.stderr


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("true", True), ("0", False), ("false", False), ("", False)])
def test_debug_by_the_environment(tmp_path: Path, value: str, shown: bool) -> None:
    from fedpath.core.errors import ConfigError

    arguments = ["provision", "--config", tmp_path / "absent.toml"]
    if shown:
        with pytest.raises(ConfigError):
            fedpath(*arguments, environment={"FEDPATH_DEBUG": value})
    else:
        fedpath(*arguments, environment={"FEDPATH_DEBUG": value}).assert_error(2)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["server", "nonsense"],
        ["provision"],
        ["provision", "--config"],
        ["client", "join", "--site", "A"],
        ["client", "join", "--wait", "long"],
        ["--nonsense"],
    ],
)
def test_wrong_usage_is_told_without_a_traceback(arguments: list[str]) -> None:
    run = fedpath(*arguments)
    assert run.code == 2
    assert "Error" in run.err
    assert "Traceback" not in run.err
    assert run.out == ""


def test_provision_says_what_goes_where(tmp_path: Path) -> None:
    (tmp_path / "federation.toml").write_text(FEDERATION)
    run = fedpath("provision", "--config", tmp_path / "federation.toml")
    assert run.code == 0, run.err
    assert "SHA-256 " in run.out
    assert "note" not in run.out
    for site in "AB":
        assert f"{tmp_path}/credentials/kits/{site}   new" in run.out
    again = fedpath("provision", "--config", tmp_path / "federation.toml")
    assert again.out.count("kept") == 3
    assert "PRIVATE" not in run.out


def test_provision_notes_a_folder_that_the_server_does_not_read(tmp_path: Path) -> None:
    (tmp_path / "federation.toml").write_text(FEDERATION)
    run = fedpath("provision", "--config", tmp_path / "federation.toml", "--out", tmp_path / "elsewhere")
    assert f'server.credentials = "{tmp_path}/credentials/server"' in run.out


def test_a_relative_config_is_no_surprise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "federation.toml").write_text(FEDERATION)
    monkeypatch.chdir(tmp_path)
    run = fedpath("provision", "--config", "federation.toml")
    assert run.code == 0
    assert "note" not in run.out
    assert (tmp_path / "credentials/server/server.crt").is_file()


def test_a_server_without_credentials(tmp_path: Path) -> None:
    (tmp_path / "federation.toml").write_text(FEDERATION)
    run = fedpath("server", "start", "--config", tmp_path / "federation.toml", "--dir", tmp_path / "state")
    run.assert_error(2, "no server certificate there", "fedpath provision")


def test_a_server_whose_model_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "federation.toml").write_text(FEDERATION + '[model]\nname = "acmill"\n')
    run = fedpath("server", "start", "--config", tmp_path / "federation.toml", "--dir", tmp_path / "state")
    run.assert_error(2, "model.name = 'acmill'", "did you mean 'acmil'?")


def test_a_site_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(SITE)
    run = fedpath("client", "join", "--site", "B", "--kit", tmp_path, "--config", tmp_path / "site.toml")
    run.assert_error(2, "key 'site.name' is 'A', --site says 'B'")


def test_a_site_without_its_kit(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(SITE)
    run = fedpath("client", "join", "--site", "A", "--kit", tmp_path / "kit", "--config", tmp_path / "site.toml")
    run.assert_error(2, f"{tmp_path}/kit: no such kit folder", "fedpath provision")


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "federation.toml").write_text(FEDERATION)
    (tmp_path / "file").write_text("")
    config = tmp_path / "federation.toml"
    fedpath("provision", "--config", config, "--out", tmp_path / "file" / "x").assert_error(1, str(tmp_path / "file"))
    fedpath("server", "start", "--config", config, "--dir", tmp_path / "file").assert_error(1, str(tmp_path / "file"))
    (tmp_path / "site.toml").write_text(f'state = "file/state"\n{SITE}')
    join = ["client", "join", "--site", "A", "--kit", tmp_path, "--config", tmp_path / "site.toml"]
    fedpath(*join).assert_error(1, str(tmp_path / "file"))


def audited(folder: Path) -> AuditLog:
    (folder / "site.toml").write_text(SITE)
    return AuditLog(folder / "state" / AUDIT_FILE)


def test_the_audit_log_is_shown(tmp_path: Path) -> None:
    log = audited(tmp_path)
    log.record(b"x" * 1234, to="host:8443", run="r1", kind="description", round_=0, holds="counts")
    log.record(b"y" * 10, to="host:8443", run="r1", kind="update", round_=3, holds="5 parameters (image)")
    run = fedpath("client", "audit", "--config", tmp_path / "site.toml")
    assert run.code == 0, run.err
    assert "description: counts" in run.out
    assert "update: 5 parameters (image)" in run.out
    assert "2 messages, 1,244 bytes; the chain of" in run.out.replace("\n", " ")


def test_what_others_wrote_is_shown_as_it_is(tmp_path: Path) -> None:
    # A refusal repeats what the coordinator sent; it must not be read as markup.
    log = audited(tmp_path)
    log.record(b"x", to="host:8443", run="r1", kind="refusal", round_=0, holds="a refusal: model '[/red][bold]x'")
    run = fedpath("client", "audit", "--config", tmp_path / "site.toml")
    assert run.code == 0, run.err
    assert "model '[/red][bold]x'" in run.out


def test_a_log_that_was_touched_is_an_error(tmp_path: Path) -> None:
    log = audited(tmp_path)
    log.record(b"x", to="host:8443", run="r1", kind="update", round_=1, holds="5 parameters")
    path = tmp_path / "state" / AUDIT_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"holds": "nothing"}) + "\n")
    run = fedpath("client", "audit", "--config", tmp_path / "site.toml")
    run.assert_error(3, "line 1: the audit log was changed or damaged", "data protection officer")


def test_an_unfinished_line_is_shown(tmp_path: Path) -> None:
    log = audited(tmp_path)
    log.record(b"x", to="host:8443", run="r1", kind="update", round_=1, holds="5 parameters")
    with (tmp_path / "state" / AUDIT_FILE).open("a") as file:
        file.write('{"number": 2, "at')
    run = fedpath("client", "audit", "--config", tmp_path / "site.toml")
    assert run.code == 0, run.err
    assert "17 bytes, was cut off by a crash" in run.out
    log.record(b"x", to="host:8443", run="r1", kind="update", round_=1, holds="5 parameters")
    run = fedpath("client", "audit", "--config", tmp_path / "site.toml")
    assert "interrupted: nothing" in run.out
    assert "2 messages, 2 bytes" in run.out


def test_an_empty_log(tmp_path: Path) -> None:
    audited(tmp_path)
    run = fedpath("client", "audit", "--config", tmp_path / "site.toml")
    assert run.code == 0
    assert "0 messages, 0 bytes" in run.out


@pytest.mark.parametrize(("package", "extra"), [("cv2", "client"), ("openslide", "client")])
def test_a_missing_extra_is_named(tmp_path: Path, package: str, extra: str) -> None:
    script = f"import sys; sys.modules['{package}'] = None; from fedpath.cli.main import main; main()"
    command = [sys.executable, "-c", script, "slides", "encode", str(tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: this command needs {package}, which is not installed\nremedy: pip install 'fedpath[{extra}]'\n"
    )
