"""Shell completion, by a real bash where it can be had, and without importing what takes long."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_tree import HEAVY

_ENTRY = """#!{python}
import sys
sys.argv[0] = "fedpath"
from fedpath.cli.main import main
main()
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A search path on which `fedpath` is this code."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "fedpath").write_text(_ENTRY.format(python=sys.executable))
    (folder / "fedpath").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def show(path: str, shell: str) -> str:
    """The script that `fedpath --show-completion` prints."""
    command = ["fedpath", "--show-completion", shell]
    # Which shell calls is looked up among the parents unless it is told; typer's variable for tests tells it.
    environment = os.environ | {"PATH": path, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(path: str, shell: str, tmp_path: Path) -> None:
    script = show(path, shell)
    assert "fedpath" in script
    assert f"complete_{shell}" in script
    if program := shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([program, "-n", tmp_path / "script"], check=True)


def complete(path: str, folder: Path, line: str) -> list[str]:
    """What bash completes at the end of a line."""
    words = line.split(" ")
    script = (
        f"{show(path, 'bash')}\n"
        f"COMP_WORDS=({' '.join(repr(word) for word in words)})\n"
        f"COMP_CWORD={len(words) - 1}\n"
        "COMPREPLY=()\n"
        'handler=$(complete -p fedpath | sed "s/.*-F \\([^ ]*\\) .*/\\1/")\n'
        "$handler fedpath\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env=os.environ | {"PATH": path},
    )
    return [word.strip() for word in done.stdout.split()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("20260101-aaa", "20260202-bbb"):
        (tmp_path / "coordinator" / "runs" / name).mkdir(parents=True)
    (tmp_path / "site.toml").write_text('[site]\nname = "North"\n')
    (tmp_path / "kit").mkdir()
    (tmp_path / "kit" / "kit.toml").write_text('site = "South"\n')
    (tmp_path / "broken.toml").write_text("[site\n")
    return tmp_path


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("fedpath re", ["recipes"]),
        ("fedpath server st", ["start"]),
        ("fedpath recipes show l", ["longmil"]),
        ("fedpath client join --st", ["--stay"]),
        ("fedpath slides encode x --device c", ["cpu", "cuda"]),
        ("fedpath run show --dir coordinator ", ["latest", "20260202-bbb", "20260101-aaa"]),
        ("fedpath run show --dir coordinator 202602", ["20260202-bbb"]),
        ("fedpath run show --dir nowhere ", ["latest"]),
        ("fedpath client join --config site.toml --kit kit --site ", ["North", "South"]),
        ("fedpath client join --config broken.toml --site ", []),
    ],
)
def test_bash_completes(path: str, folder: Path, line: str, wanted: list[str]) -> None:
    assert complete(path, folder, line) == wanted


def test_completing_imports_nothing_heavy(folder: Path) -> None:
    """A completion ends its process at once, so Python itself is asked what it has imported by then."""
    line = "fedpath run show --dir coordinator "
    environment = os.environ | {
        "_FEDPATH_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": "5", "_TYPER_COMPLETE_ARGS": line
    }  # fmt: skip
    script = "import sys; sys.argv = ['fedpath']; from fedpath.cli.main import main; main()"
    command = [sys.executable, "-X", "importtime", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert "20260202-bbb" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert sorted(imported & set(HEAVY)) == []
