"""One form of output: JSON that holds, errors as JSON, bars only where they can move, colours as users want them."""

import io
import json
import math
import os
import pty
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from command import federation_of_tables, fedpath
from slide_files import small_slide

from fedpath.cli import output
from fedpath.core.events import EventLog
from fedpath.core.recipes import Recipe

FEDERATION = federation_of_tables(2)
TABLE = "".join(
    f"{label},{label}-{bag},{row}.5,{bag}.25\n" for label in ("no", "yes") for bag in range(6) for row in "12"
)


def test_plain_values() -> None:
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    value = {
        1: (math.nan, -math.inf, 0.5),
        "path": Path("a/b"),
        "at": moment,
        "of": Recipe("a", "b", "c", "d"),
        "no": None,
    }
    assert output.plain(value) == {
        "1": [None, None, 0.5],
        "path": "a/b",
        "at": "2026-01-02T00:00:00+00:00",
        "of": {"name": "a", "title": "b", "summary": "c", "text": "d"},
        "no": None,
    }
    with pytest.raises(TypeError, match="Random has no form"):
        output.plain(__import__("random").Random())


def test_events_are_lines_as_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    EventLog(tmp_path / "events.jsonl", output.event).emit("moving", site="A", done=1)
    printed = capsys.readouterr().out
    assert json.loads(printed) == json.loads((tmp_path / "events.jsonl").read_text())
    output.result(folder=Path("x"))
    assert json.loads(capsys.readouterr().out).items() >= {"kind": "result", "folder": "x"}.items()


def test_what_libraries_print_stays_out_of_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    with output.reserved():
        print("a library says hello")
        output.document([1])
    printed = capsys.readouterr()
    assert json.loads(printed.out) == [1]
    assert printed.err == "a library says hello\n"


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["run", "list", "--json"], True),
        (["run", "list"], False),
        (["slides", "info", "--", "--json"], False),
        ([], False),
    ],
)
def test_whether_json_is_wanted_is_known_before_parsing(arguments: list[str], wanted: bool) -> None:
    assert output.wanted(arguments) is wanted


@pytest.mark.parametrize(
    ("arguments", "code", "message", "remedy"),
    [
        (["provision", "--config", "absent.toml"], 2, "absent.toml: no such file", "check the path"),
        (
            ["client", "join", "--site", "A", "--kit", "k", "--config", "absent.toml"],
            2,
            "no such file",
            "check the path",
        ),
        (["server", "start", "--config", "absent.toml", "--dir", "x"], 2, "no such file", "check the path"),
        (["nonsense"], 2, "No such command 'nonsense'", "see fedpath --help"),
        (["run", "list", "--nonsense"], 2, "No such option", "see fedpath run list --help"),
        (["provision"], 2, "Missing option '--config'", "see fedpath provision --help"),
    ],
)
def test_errors_are_json(arguments: list[str], code: int, message: str, remedy: str) -> None:
    run = fedpath(*arguments, "--json")
    assert (run.code, run.out) == (code, "")
    error = json.loads(run.err)["error"]
    assert error.keys() == {"message", "remedy", "exit_code"}
    assert error["exit_code"] == code
    assert message in error["message"]
    assert remedy in error["remedy"]


@pytest.fixture
def hospital(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to give commands in: federation.toml, site.toml, a cohort, a slide."""
    (tmp_path / "federation.toml").write_text(FEDERATION)
    (tmp_path / "site.toml").write_text(
        '[site]\nname = "A"\n[data]\nmanifest = "cohort/manifest.csv"\nfeatures = "cohort/features"\n'
    )
    (tmp_path / "table.csv").write_text(TABLE)
    (tmp_path / "slides").mkdir()
    small_slide(tmp_path / "slides" / "a.tif", 0.5)
    monkeypatch.chdir(tmp_path)
    assert fedpath("cohort", "from-table", "table.csv", "--out", "cohort").code == 0
    return tmp_path


CHEAP = [
    "recipes",
    "recipes list",
    "recipes show bd",
    "recipes write vib --out recipe.toml",
    "init --role coordinator --sites A --address localhost:1 --out new.toml",
    "init --role hospital --site A --federation small --out new.toml",
    "provision --config federation.toml",
    "run list --dir .",
    "run submit --dir . --config federation.toml",
    "client audit --config site.toml",
    "client plan --config site.toml --encoder tiny-resnet --patch 64 --patches 64",
    "cohort check --config federation.toml --site site.toml",
    "cohort from-table table.csv --out other",
    "models list",
    "models show longmil",
    "encoders list",
    "encoders show tiny-vit",
    "slides info slides/a.tif",
    "slides check slides",
    "slides tissue slides --out tissue",
    "slides draw drawn --slides 6",
]


@pytest.mark.parametrize("line", CHEAP)
def test_one_document(hospital: Path, line: str) -> None:
    run = fedpath(*line.split(), "--json")
    assert run.code == 0, run.err
    assert isinstance(json.loads(run.out), dict | list)


def test_requests_for_a_run(hospital: Path) -> None:
    submitted = json.loads(fedpath("run", "submit", "--dir", ".", "--config", "federation.toml", "--json").out)
    stopped = json.loads(fedpath("run", "stop", "latest", "--dir", ".", "--json").out)
    assert (submitted["state"], stopped["state"]) == ("queued", "stopped")
    assert "out of the queue" in stopped["says"]
    assert json.loads(fedpath("run", "show", "latest", "--dir", ".", "--json").out)["run"] == submitted["run"]
    watched = [json.loads(line) for line in fedpath("run", "watch", "latest", "--dir", ".", "--json").out.splitlines()]
    assert [one["kind"] for one in watched] == ["run", "result"]
    assert watched[-1]["state"] == "stopped"
    assert json.loads(fedpath("run", "resume", "latest", "--dir", ".", "--json").out)["state"] == "queued"


def lines_of(out: str) -> list[dict[str, object]]:
    """The events that a command printed; the last is the result."""
    lines = [json.loads(line) for line in out.splitlines()]
    assert all({"kind", "at"} <= line.keys() for line in lines)
    assert [line["kind"] for line in lines].count("result") == 1
    assert lines[-1]["kind"] == "result"
    return lines


def test_encoding_in_lines(hospital: Path) -> None:
    run = fedpath("slides", "encode", "slides", "--out", "features", "--patch", "64", "--json")
    assert run.code == 0, run.err
    first, *_, last = lines_of(run.out)
    assert (first["kind"], first["slide_id"]) == ("slide", "a")
    assert [one["slide_id"] for one in last["done"]] == ["a"]


def test_training_in_lines(hospital: Path) -> None:
    with (hospital / "federation.toml").open("a") as file:
        file.write('[training]\nrounds = 2\n[model]\nname = "mean-pool"\n')
    train = "train --config federation.toml --site site.toml --json --out"
    run = fedpath(*train.split(), "alone")
    assert run.code == 0, run.err
    lines = lines_of(run.out)
    assert [line["kind"] for line in lines].count("validated") == 2
    assert lines[-1]["report"] == json.loads((hospital / "alone" / "metrics.json").read_text())
    run = fedpath(*train.split(), "folds", "--folds", "2")
    assert run.code == 0, run.err
    assert lines_of(run.out)[-1]["report"] == json.loads((hospital / "folds" / "summary.json").read_text())
    model = "explain geojson --model alone/best.safetensors --features cohort/features --out qupath --json"
    *_, last = lines = lines_of(fedpath(*model.split()).out)
    assert len(lines) == 13
    assert last["drawn"] == [line["kind"] for line in lines].count("drawn")


# --- terminals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("terminal", "environment", "moves"),
    [
        (True, {"TERM": "xterm"}, True),
        (True, {"TERM": "dumb"}, False),
        (False, {"TERM": "xterm"}, False),
        (False, {"TERM": "xterm", "FORCE_COLOR": "1"}, False),
    ],
)
def test_where_a_bar_may_move(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, environment: dict[str, str], moves: bool
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream, os.fdopen(ours):
        monkeypatch.setattr(sys, "stdout", stream if terminal else io.StringIO())
        assert output.moves(output.console()) is moves
        assert not output.moves(output.console(quiet=True))
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
def test_colours_are_as_the_user_wants_them(environment: dict[str, str], coloured: bool) -> None:
    clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    command = [sys.executable, "-m", "fedpath.cli", "recipes"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=clean | {"TERM": "xterm"} | environment
    )
    # Bold is no colour: NO_COLOR leaves it.
    assert ("\x1b[" in done.stdout) is ("FORCE_COLOR" in environment)
    table = fedpath("run", "list", "--help", environment=environment)
    assert table.code == 0
    assert ("\x1b[1;36m" in table.out) is coloured
