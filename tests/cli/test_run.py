"""`fedpath run` over a coordinator's folder with one finished run."""

import csv
import json
import shutil
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
from command import fedpath
from in_process import Sites, write_sites

from fedpath.core.config import FederationConfig
from fedpath.core.events import EventLog
from fedpath.core.models import load_model
from fedpath.server.execute import execute
from fedpath.server.runs import open_run

CONFIG: dict[str, Any] = {
    "federation": {"name": "test", "sites": ["A", "B"]},
    "server": {"address": "localhost:1", "grace_s": 0.0, "join_timeout_s": 1.0},
    "task": {"labels": ["normal", "tumour"]},
    "features": {"encoder": "noise", "width": 8, "mpp": 0.5, "patch_px": 128},
    "model": {"name": "acmil", "options": {"inner": 4, "attention": 4}},
    "training": {"rounds": 2, "learning_rate": 0.01},
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    write_sites(folder, "AB")
    config, state = FederationConfig.model_validate(CONFIG), folder / "coordinator"
    run = open_run(config, state, new=False)
    execute(config, run.name, run.folder, Sites(folder, "AB"), EventLog(), threading.Event())
    return state


@pytest.fixture
def state(served: Path, tmp_path: Path) -> Path:
    return shutil.copytree(served, tmp_path / "coordinator")


def the_run(state: Path) -> Path:
    (folder,) = (state / "runs").iterdir()
    return folder


def test_list(state: Path) -> None:
    listed = fedpath("run", "list", "--dir", state)
    assert listed.code == 0
    assert the_run(state).name in listed.out
    assert "finished" in listed.out
    (run,) = json.loads(fedpath("run", "list", "--dir", state, "--json").out)
    assert (run["run"], run["state"], run["done"], run["rounds"]) == (the_run(state).name, "finished", 2, 2)
    assert json.loads(fedpath("run", "list", "--dir", state, "--state", "failed", "--json").out) == []
    fedpath("run", "list", "--dir", state, "--state", "finisht").assert_error(2, "did you mean 'finished'?")


def test_an_empty_registry(tmp_path: Path) -> None:
    assert "no run yet" in fedpath("run", "list", "--dir", tmp_path).out
    fedpath("run", "show", "latest", "--dir", tmp_path).assert_error(2, "no run yet", "fedpath run submit")
    fedpath("run", "list", "--dir", tmp_path / "nowhere").assert_error(2, "no such folder")


def test_show(state: Path) -> None:
    shown = fedpath("run", "show", "latest", "--dir", state)
    assert shown.code == 0
    for text in ("training.learning_rate = 0.01", "8 patients", str(the_run(state)), "2 of 2 rounds are done"):
        assert text in shown.out
    assert "training.weight_decay" not in shown.out
    facts = json.loads(fedpath("run", "show", the_run(state).name[:6], "--dir", state, "--json").out)
    assert [round_["sites"]["A"]["outcome"] for round_ in facts["round"]] == ["answered", "answered"]
    assert facts["settings"]["training.rounds"] == 2
    fedpath("run", "show", "19990101", "--dir", state).assert_error(2, "there is none", the_run(state).name)


@pytest.mark.parametrize("name", ["out.zip", "out"])
def test_export(state: Path, tmp_path: Path, name: str) -> None:
    to, wanted = tmp_path / name, {"best.safetensors", "summary.json", "config.json", "participation.csv"}
    wanted |= {"rounds/0001.json", "rounds/0002.json"}
    assert fedpath("run", "export", "latest", "--dir", state, "--to", to).code == 0
    folder = to
    if to.suffix:
        folder = tmp_path / "unpacked"
        with zipfile.ZipFile(to) as archive:
            archive.extractall(folder)
        again = tmp_path / "again.zip"
        fedpath("run", "export", "latest", "--dir", state, "--to", again)
        assert again.read_bytes() == to.read_bytes()
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == wanted
    load_model(folder / "best.safetensors")
    with (folder / "participation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["round"], row["site"], row["outcome"], row["patients"]) for row in rows] == [
        (str(round_), site, "answered", "8") for round_ in (1, 2) for site in "AB"
    ]
    fedpath("run", "export", "latest", "--dir", state, "--to", to).assert_error(2, "is there already")


def test_the_files_are_elsewhere(state: Path, tmp_path: Path) -> None:
    fedpath("run", "list", "--dir", state)
    shutil.rmtree(the_run(state))
    exported = fedpath("run", "export", "latest", "--dir", state, "--to", tmp_path / "out.zip")
    exported.assert_error(3, "is not on this machine")


def write_config(folder: Path, **changes: Any) -> Path:
    content = '[federation]\nname = "test"\nsites = ["A", "B"]\n[server]\naddress = "localhost:1"\n'
    content += '[task]\nlabels = ["normal", "tumour"]\n[features]\nencoder = "noise"\nwidth = 8\n'
    content += f'[training]\nrounds = {changes.get("rounds", 2)}\n[model]\nname = "{changes.get("model", "acmil")}"\n'
    (folder / "federation.toml").write_text(content)
    return folder / "federation.toml"


def test_submit_stop_resume(state: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    told = fedpath("run", "submit", "--config", config, "--dir", state, "--name", "one")
    assert told.code == 0
    assert "submitted run " in told.out
    assert "nobody serves the queue" in told.err
    second = json.loads(
        fedpath("run", "submit", "--config", config, "--dir", state, "--after", "one", "--priority", "3", "--json").out
    )
    assert (second["state"], second["priority"], second["rounds"]) == ("queued", 3, 2)
    listed = fedpath("run", "list", "--dir", state)
    assert "place 2 in the queue" in listed.out
    assert "nobody serves the queue of federation test" in listed.out
    assert "out of the queue" in fedpath("run", "stop", "one", "--dir", state).out
    fedpath("run", "stop", "one", "--dir", state).assert_error(2, "there is nothing to stop", "fedpath run resume")
    assert "in the queue again" in fedpath("run", "resume", "one", "--dir", state).out
    fedpath("run", "stop", "onne", "--dir", state).assert_error(2, "did you mean 'one'?")
    fedpath("run", "watch", "20", "--dir", state).assert_error(2, "could be any of")


def test_what_cannot_be_run_is_not_submitted(state: Path, tmp_path: Path) -> None:
    wrong = write_config(tmp_path, model="acmill")
    fedpath("run", "submit", "--config", wrong, "--dir", state).assert_error(2, "acmill", "did you mean 'acmil'?")
    assert len(json.loads(fedpath("run", "list", "--dir", state, "--json").out)) == 1


def test_compare(state: Path, tmp_path: Path) -> None:
    fedpath("run", "submit", "--config", write_config(tmp_path, rounds=5), "--dir", state, "--name", "longer")
    name = next(folder.name for folder in (state / "runs").iterdir() if (folder / "summary.json").exists())
    compared = fedpath("run", "compare", name, "longer", "--dir", state)
    assert compared.code == 0
    for text in ("training.rounds", "rounds that A counted in", "test AUC at B"):
        assert text in compared.out
    facts = json.loads(fedpath("run", "compare", name, "longer", "--dir", state, "--json").out)
    assert sorted(facts["settings"]["training.rounds"].values()) == [2, 5]
    assert facts["runs"][name]["counted"] == {"A": [1, 2], "B": [1, 2]}
    assert list(facts["runs"][name]["validation_auc"]) == ["0", "1", "2"]
    fedpath("run", "compare", name, name, "--dir", state).assert_error(2, "two different runs")


def test_watch_tells_what_happened_and_ends_with_the_runs_code(state: Path) -> None:
    watched = fedpath("run", "watch", "latest", "--dir", state)
    assert watched.code == 0
    assert "round 2: counted A, B" in watched.out
    assert "is finished: best round" in watched.out
