"""The Dockerfile: linted, and every path, package, command and flag in it is there."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from deploy_files import COMPOSE, ROOT, Dockerfile, check_command, compose

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"


def hadolint(path: Path) -> "subprocess.CompletedProcess[str]":
    tool = Path(sys.executable).with_name("hadolint")
    return subprocess.run([tool, "--no-color", path], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def dockerfile() -> Dockerfile:
    return Dockerfile(DOCKERFILE.read_text())


def test_hadolint_has_nothing_to_say() -> None:
    done = hadolint(DOCKERFILE)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout


def test_hadolint_finds_what_is_wrong(tmp_path: Path) -> None:
    """So that the test above says something: a base without a tag, root at the end, packages without a version."""
    text = DOCKERFILE.read_text()
    spoilt = tmp_path / "Dockerfile"
    for what, instead, rule in (
        ("FROM ${PYTHON_IMAGE}${PYTHON_DIGEST:+@${PYTHON_DIGEST}} AS base", "FROM python:latest AS base", "DL3007"),
        ("USER 10001:10001", "USER root", "DL3002"),
        ('"tini=0.19.*"', "tini", "DL3008"),
        ("--no-install-recommends", "", "DL3015"),
    ):
        assert what in text
        spoilt.write_text(text.replace(what, instead))
        done = hadolint(spoilt)
        assert done.returncode == 1
        assert rule in done.stdout


def test_what_is_copied_is_there_and_not_ignored(dockerfile: Dockerfile) -> None:
    ignore = (ROOT / ".dockerignore").read_text().split()
    assert "*" in ignore
    allowed = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    sources = {source for stage in dockerfile.stages for source in stage.copied()}
    assert sources > {"core", "client", "server", "cli", "pyproject.toml", "deploy/backup/backup.py"}
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(source == path or source.startswith(f"{path}/") for path in allowed), source
    for path in allowed:
        assert any(source == path or source.startswith(f"{path}/") for source in sources), f"{path} is sent for nothing"


def test_every_package_of_the_source_is_copied(dockerfile: Dockerfile) -> None:
    rooms = re.search(r"ROOMS = \((.*)\)", (ROOT / "setup.py").read_text())
    assert rooms is not None
    assert set(re.findall(r'"(\w+)"', rooms[1])) < set(dockerfile.stage("source").copied())


def test_base_versions_and_extras_are_those_of_the_project(dockerfile: Dockerfile) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert re.fullmatch(r"docker\.io/library/python:3\.11\.\d+-slim-\w+", dockerfile.arguments["PYTHON_IMAGE"])
    assert project["requires-python"] == ">=3.11,<3.12"
    assert dockerfile.arguments["PYTHON_DIGEST"] == ""
    assert dockerfile.arguments["VERSION"] == project["version"]
    for name in ("SERVER_EXTRAS", "SITE_EXTRAS"):
        assert set(dockerfile.arguments[name].split(",")) <= project["optional-dependencies"].keys()
    # The coordinator's wheel is PyTorch's own for the CPU; PyPI's is the CUDA build.
    assert dockerfile.arguments["SERVER_TORCH_INDEX"].endswith("/whl/cpu")
    assert dockerfile.arguments["SITE_TORCH_INDEX"] == "https://pypi.org/simple"
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("target", ["server", "site"])
def test_what_an_image_is(dockerfile: Dockerfile, target: str) -> None:
    lines = dockerfile.lineage(target)
    said = {word: [rest for name, rest in lines if name == word] for word in ("RUN", "USER", "ENTRYPOINT", "ENV")}
    assert said["USER"] == ["10001:10001"]
    assert said["ENTRYPOINT"] == ['["tini", "--", "fedpath"]']
    # What the image itself runs installs tini and takes pip away: no compiler, no package of Python.
    (run,) = said["RUN"]
    assert re.findall(r"--no-install-recommends (\S+)", run) == ['"tini=0.19.*"']
    assert "pip uninstall" in run
    assert "pip install" not in run
    assert "rm -rf /var/lib/apt/lists/*" in run
    labels = " ".join(rest for name, rest in lines if name == "LABEL")
    for label in ("title", "description", "version", "revision", "licenses"):
        assert f"org.opencontainers.image.{label}=" in labels


@pytest.mark.parametrize("target", ["server", "site"])
def test_commands_and_flags_exist(dockerfile: Dockerfile, target: str) -> None:
    check_command(dockerfile.command(target))


def test_images_and_compose_agree(dockerfile: Dockerfile) -> None:
    """On the coordinator's command, its ports, and how a container is asked how it does."""
    service = compose(COMPOSE / "coordinator.yaml")["services"]["coordinator"]
    assert dockerfile.command("server") == service["command"]
    assert dockerfile.health() == service["healthcheck"]["test"]
    exposed = {port for name, rest in dockerfile.lineage("server") if name == "EXPOSE" for port in rest.split()}
    assert exposed == {"9443", "9464", "9465"}


def test_libraries_write_where_everybody_may(dockerfile: Dockerfile) -> None:
    folders = {name: value for name, value in dockerfile.environment("site").items() if value.startswith("/tmp")}
    assert folders.keys() >= {"HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "NUMBA_CACHE_DIR", "RAY_TMPDIR", "FLWR_HOME"}
