"""docs/kubernetes.md says what the charts can do: its commands render, its values exist."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from charts import CHARTS, HELM_FOLDER, helm

ROOT = HELM_FOLDER.parent
TEXT = (ROOT / "docs" / "kubernetes.md").read_text()
DIGEST = f"sha256:{'0' * 64}"


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where an installer stands: the files of the page, the charts, the keys."""
    for block in _blocks(TEXT, "toml"):
        (tmp_path / block.partition("\n")[0].removeprefix("# ")).write_text(block)
    for site in ("A", "B"):
        key = tmp_path / "credentials" / "server" / "sites" / f"{site}.pub"
        key.parent.mkdir(parents=True, exist_ok=True)
        key.write_text("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    (tmp_path / "helm").symlink_to(HELM_FOLDER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _commands() -> list[tuple[str, str]]:
    """Every `helm install` and `helm upgrade` of the page and of the charts' READMEs, with its chart."""
    texts = [TEXT, *((HELM_FOLDER / chart / "README.md").read_text() for chart in CHARTS)]
    lines = [
        line for text in texts for block in _blocks(text, "bash") for line in block.replace("\\\n", " ").split("\n")
    ]
    found = [
        (re.search(r"helm/(fedpath-\w+)", line), line) for line in lines if re.match(r"helm (install|upgrade)", line)
    ]
    return [(chart[1], line) for chart, line in found if chart is not None]


@pytest.mark.parametrize(("chart", "line"), _commands())
def test_commands_install(chart: str, line: str, folder: Path) -> None:
    words = shlex.split(line.replace("sha256:…", DIGEST))
    arguments = [word for word in words[2:] if word != "--reset-then-reuse-values"]
    if words[1] == "upgrade":  # of what was installed before
        (installed,) = [
            other for of, other in _commands() if of == chart and "install" in other and DIGEST[:6] in other
        ]
        before = shlex.split(installed.replace("sha256:…", DIGEST))[4:]
        arguments = [*arguments[:2], *before, *arguments[2:]]
    done = helm("template", *arguments)
    assert done.returncode == 0, done.stderr


def test_fragments_of_values_fit(folder: Path) -> None:
    (installed,) = [line for chart, line in _commands() if chart == "fedpath-site" and "sha256" in line]
    arguments = shlex.split(installed.replace("sha256:…", DIGEST))[2:]
    fragments = [block for block in _blocks(TEXT, "yaml") if "kind:" not in block]
    assert len(fragments) >= 3
    for block in fragments:
        (folder / "values.yaml").write_text(block)
        done = helm("template", *arguments, "--values", "values.yaml")
        assert done.returncode == 0, done.stderr


def test_values_that_the_page_names_exist() -> None:
    known: dict[str, Any] = {}
    for chart in CHARTS:
        _collect(yaml.safe_load((HELM_FOLDER / chart / "values.yaml").read_text()), "", known)
    tops = {key.partition(".")[0] for key in known} - {"federation", "site", "state"}
    named = re.findall(r"`([a-z]\w+(?:\.\w+)+)(?:=[^`]*)?`", TEXT)
    values = [name for name in named if name.partition(".")[0] in tops and not name.endswith(".toml")]
    assert len(values) > 20
    assert [name for name in values if name not in known and not name.startswith("resources.")] == []


def _collect(values: dict[str, Any], path: str, known: dict[str, Any]) -> None:
    for key, value in values.items():
        known[f"{path}{key}"] = value
        if isinstance(value, dict):
            _collect(value, f"{path}{key}.", known)
