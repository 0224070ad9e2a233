"""The compose files: of the schema, and every service contained, with commands that exist."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from deploy_files import COMPOSE, check_command, compose

FILES = sorted(COMPOSE.glob("*.yaml"))
SERVICES = [
    (path, name)
    for path in FILES
    if path.name.count(".") == 1  # others add to one of these
    for name in compose(path)["services"]
]  # fmt: skip
EACH_HAS_ITS_OWN = {"command", "volumes", "ports", "depends_on"}
"""What differs between the trial's services and those of the files that they stand for."""


def check_schema(path: Path) -> "subprocess.CompletedProcess[str]":
    tool = Path(sys.executable).with_name("check-jsonschema")
    return subprocess.run(
        [tool, "--builtin-schema", "vendor.compose-spec", path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(params=SERVICES, ids=lambda one: f"{one[0].stem}-{one[1]}")
def service(request: pytest.FixtureRequest) -> dict[str, Any]:
    path, name = request.param
    found: dict[str, Any] = compose(path)["services"][name]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_are_of_the_schema(path: Path) -> None:
    done = check_schema(path)
    assert done.returncode == 0, done.stdout


def test_the_schema_finds_what_is_wrong(tmp_path: Path) -> None:
    spoilt = tmp_path / "compose.yaml"
    spoilt.write_text((COMPOSE / "compose.yaml").read_text().replace("cap_drop", "cap_drops"))
    assert check_schema(spoilt).returncode == 1


def test_a_service_is_contained(service: dict[str, Any]) -> None:
    assert service["user"] == "10001:10001"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert [text.partition(":")[0] for text in service["tmpfs"]] == ["/tmp"]
    assert not service.keys() & {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices", "userns_mode"}
    for volume in service["volumes"]:
        if volume["type"] == "bind":  # a folder of the machine is only read, and not made where it is missing
            assert volume["read_only"] is True
            assert volume["bind"]["create_host_path"] is False
        else:
            assert volume["target"] == "/var/lib/fedpath"


def test_only_the_hospitals_port_is_open_to_others(service: dict[str, Any]) -> None:
    ports = [port.rsplit(":", 2) for port in service["ports"]]
    for address, _, inside in ports:
        assert address == "127.0.0.1" or (address, inside) == ("0.0.0.0", "9443")
    inside = {inside for _, _, inside in ports}
    assert inside == ({"9443", "9464"} if "server" in service["command"] else {"9464"})


def test_commands_and_flags_exist(service: dict[str, Any]) -> None:
    check_command(service["command"])
    assert service["healthcheck"]["test"][0] == "CMD"


def test_the_trial_is_what_the_other_files_say() -> None:
    trial = compose(COMPOSE / "compose.yaml")["services"]
    real = {name: compose(COMPOSE / f"{name}.yaml")["services"][name] for name in ("coordinator", "hospital")}
    assert trial.keys() == {"coordinator", "hospital-a", "hospital-b"}
    for name, service in trial.items():
        like = real["coordinator" if name == "coordinator" else "hospital"]
        assert _without_own(service) == _without_own(like)
        command = [word if word not in ("A", "B") else "A" for word in service["command"]]
        assert command == like["command"]
        assert [volume["target"] for volume in service["volumes"]] == [volume["target"] for volume in like["volumes"]]


def _without_own(service: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in service.items() if key not in EACH_HAS_ITS_OWN}


def test_a_hospital_with_a_gpu_reserves_it() -> None:
    (device,) = compose(COMPOSE / "hospital.gpu.yaml")["services"]["hospital"]["deploy"]["resources"]["reservations"][
        "devices"
    ]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]


def test_a_coordinator_with_its_page_is_the_same_with_a_page() -> None:
    plain, paged = (compose(COMPOSE / f"coordinator{more}.yaml")["services"]["coordinator"] for more in ("", ".page"))
    check_command(paged["command"])
    begins = len(plain["command"])
    assert paged["command"][:begins] == plain["command"]
    flags = paged["command"][begins:]
    assert dict(zip(flags[::2], flags[1::2], strict=True)) == {
        "--page-port": "8470",
        "--page-host": "0.0.0.0",
        "--page-token-file": "/etc/fedpath/page-token",
    }
    assert paged["ports"] == ["127.0.0.1:8470:8470"]


@pytest.mark.parametrize("role", ["coordinator", "hospital"])
def test_every_variable_is_in_the_example(role: str) -> None:
    example = (COMPOSE / f"{role}.env.example").read_text()
    named = set(re.findall(r"^(\w+)=", example, flags=re.MULTILINE))
    used = set(re.findall(r"\$\{(\w+)", (COMPOSE / f"{role}.yaml").read_text()))
    assert used - named == {"FEDPATH_METRICS_PORT"}  # of use where the port is taken
    assert named - used == {"COMPOSE_FILE"}
    (files,) = re.findall(r"^COMPOSE_FILE=(\S+)", example, flags=re.MULTILINE)
    assert all((COMPOSE / name).is_file() for name in files.split(":"))
