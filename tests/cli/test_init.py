"""`fedpath init`: from options, from answers, and at a real terminal; what it writes is what the loaders read."""

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import fedpath

from fedpath.core.config import load_federation, load_site
from fedpath.core.config.kit import KIT_FILE
from fedpath.core.recipes import find_recipe

COORDINATOR = ["init", "--role", "coordinator", "--sites", "A,B", "--address", "fed.example.org:9443", "--yes"]
HOSPITAL = ["init", "--role", "hospital", "--yes"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def kit(here: Path) -> Path:
    folder = here / "kit-A"
    folder.mkdir()
    (folder / KIT_FILE).write_text('federation = "lung"\nsite = "A"\naddress = "fed.example.org:9443"\n')
    return folder


def test_a_coordinators_file(here: Path) -> None:
    run = fedpath(*COORDINATOR, "--recipe", "bd", "--name", "lung", "--labels", "no, yes , maybe")
    assert run.code == 0, run.err
    assert "fedpath provision --config federation.toml" in run.out
    config = load_federation(here / "federation.toml")
    assert config.federation.name == "lung"
    assert config.federation.sites == ["A", "B"]
    assert config.server.address == "fed.example.org:9443"
    assert config.task.labels == ["no", "yes", "maybe"]
    assert config.model.name == "bd"
    comments = [line for line in (here / "federation.toml").read_text().splitlines() if line.startswith("#")]
    assert comments == [line for line in find_recipe("bd").text.splitlines() if line.startswith("#")]


def test_a_hospitals_file_from_its_kit(here: Path, kit: Path) -> None:
    run = fedpath(*HOSPITAL, "--kit", kit, "--data", "data", "--slides", "/mnt/slides", "--gpu-gb", "11.5")
    assert run.code == 0, run.err
    assert f"fedpath client join --site A --kit {kit} --config site.toml" in run.out
    site = load_site(here / "site.toml")
    assert site.site.name == "A"
    assert site.policy.federations == ["lung"]
    assert site.policy.fine_tune
    assert site.data.manifest == here / "data" / "manifest.csv"
    assert site.data.features == here / "data" / "features"
    assert site.slides is not None
    assert site.slides.folder == Path("/mnt/slides")
    assert site.compute.vram_gb == 11.5
    assert 'manifest = "data/manifest.csv"' in (here / "site.toml").read_text()


def test_a_hospitals_file_without_a_kit(here: Path) -> None:
    run = fedpath(*HOSPITAL, "--site", "A", "--federation", "lung", "--out", "deep/site.toml", "--data", "data")
    assert run.code == 0, run.err
    site = load_site(here / "deep" / "site.toml")
    assert site.slides is None
    assert not site.policy.fine_tune
    assert site.compute.vram_gb is None
    # Not below the file's own folder.
    assert site.data.manifest == here / "data" / "manifest.csv"


def test_the_comments_of_a_hospitals_file_are_settings_that_exist(here: Path) -> None:
    fedpath(*HOSPITAL, "--site", "A", "--federation", "lung")
    lines = (here / "site.toml").read_text().splitlines()
    offered = [
        line.removeprefix("# ") for line in lines if line.startswith(("# [", "# ")) and ("=" in line or "[" in line)
    ]
    assert len(offered) > 8
    real = [line for line in lines if not line.startswith("#")]
    (here / "site.toml").write_text(
        "\n".join(line.removeprefix("# ") if line[2:] in offered else line for line in lines)
    )
    assert load_site(here / "site.toml").clinical is not None
    assert real


def test_what_was_written_is_never_replaced(here: Path) -> None:
    for command, name in ((COORDINATOR, "federation.toml"), ([*HOSPITAL, "--site", "A"], "site.toml")):
        (here / name).write_text("mine")
        fedpath(*command).assert_error(2, f"{name}: exists already", "--out")
        assert (here / name).read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--role", "coordinator", "--address", "h:1"], "--sites is missing"),
        (["--role", "coordinator", "--sites", "A"], "--address is missing"),
        (["--role", "coordinator", "--sites", "A,a", "--address", "h:1"], "--sites A,a: a site is listed twice"),
        (["--role", "coordinator", "--sites", "A,b c", "--address", "h:1"], "b c: should be 1 to 63 letters"),
        (["--role", "coordinator", "--sites", ",", "--address", "h:1"], "names at least one hospital"),
        (["--role", "coordinator", "--sites", "A", "--address", "h"], "--address h: should be HOST:PORT"),
        (["--role", "coordinator", "--sites", "A", "--address", "h:0"], "port 0 cannot be connected to"),
        (["--role", "coordinator", "--sites", "A", "--address", "h:1", "--labels", "x"], "at least two labels"),
        (["--role", "coordinator", "--sites", "A", "--address", "h:1", "--labels", "x,x"], "a label is listed twice"),
        (["--role", "coordinator", "--sites", "A", "--address", "h:1", "--recipe", "x"], "should be one of acmil"),
        (["--role", "hospital", "--federation", "lung"], "--site is missing"),
        (["--role", "hospital", "--site", "A"], "--federation is missing"),
        (["--role", "hospital", "--kit", "nowhere"], "no kit.toml in it"),
        (["--role", "hospital", "--kit", "kit-A", "--site", "B"], "--site is 'B', the kit is for 'A'"),
        (["--role", "hospital", "--kit", "kit-A", "--gpu-gb", "-8"], "should be a number above 0"),
        (["--role", "hospital", "--kit", "kit-A", "--gpu-gb", "nan"], "should be a number above 0"),
        (["--role", "hospital", "--kit", "kit-A", "--data", "kit-A/kit.toml"], "is a file: name a folder"),
        ([], "--role is missing"),
    ],
)
def test_wrong_options_are_named(kit: Path, options: list[str], words: str) -> None:
    fedpath("init", *options, "--yes").assert_error(2, words)
    assert not list(kit.parent.glob("*.toml"))


def test_json_asks_nothing(kit: Path) -> None:
    run = fedpath("init", "--role", "hospital", "--kit", kit, "--json")
    assert run.code == 0, run.err
    told = json.loads(run.out)
    assert told["role"] == "hospital"
    assert told["path"] == "site.toml"
    assert told["site"] == "A"
    assert told["gpu_gb"] is None


class Terminal:
    """A process at a real terminal, and what it has shown."""

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "120", "NO_COLOR": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fedpath.cli", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
        )
        os.close(theirs)
        self._seen = ""

    def expect(self, words: str, deadline_s: float = 60) -> None:
        """Wait until some words are shown after those of the time before."""
        deadline = time.monotonic() + deadline_s
        while words not in self._seen:
            ready, _, _ = select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{words!r} was not shown: {self._seen}"
            self._seen += os.read(self._ours, 4096).decode(errors="replace")
        self._seen = self._seen.partition(words)[2]

    def answer(self, text: str) -> None:
        """Type a line."""
        os.write(self._ours, f"{text}\n".encode())

    def end(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


def test_wrong_answers_are_asked_again_at_a_terminal(here: Path, kit: Path) -> None:
    terminal = Terminal("init")
    try:
        terminal.expect("Whose file is it?")
        terminal.answer("nobody's")
        terminal.expect("should be one of coordinator, hospital")
        terminal.answer("hospital")
        terminal.expect("Which folder is the kit")
        terminal.answer("nowhere")
        terminal.expect("no kit.toml in it")
        terminal.answer("kit-A")
        terminal.expect("What is this hospital called")
        terminal.expect("(A)")
        terminal.answer("")
        terminal.expect("Which federation do you take part in?")
        terminal.answer("")
        terminal.expect("manifest.csv and features/?")
        terminal.answer("data")
        terminal.expect("Which folder has the slides")
        terminal.answer("")
        terminal.expect("How many GB")
        terminal.answer("much")
        terminal.expect("should be a number above 0")
        terminal.answer("8")
        terminal.expect("wrote site.toml")
        assert terminal.process.wait(30) == 0
    finally:
        terminal.end()
    site = load_site(here / "site.toml")
    assert (site.site.name, site.compute.vram_gb) == ("A", 8.0)
    assert site.data.manifest == here / "data" / "manifest.csv"
