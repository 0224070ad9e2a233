"""Simulations on Ray: hospitals as tasks, in processes that die for real."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from federation import WIDTH, wait_until
from in_process import Sites, write_sites

from fedpath.cli.simulate.coordinate import coordinate
from fedpath.cli.simulate.federation import simulated
from fedpath.cli.simulate.processes import Processes, processes_on
from fedpath.cli.simulate.talk import Failures, RayTalk
from fedpath.core.cluster import connected
from fedpath.core.config import FederationConfig, SiteConfig, load_site
from fedpath.core.errors import FederationError
from fedpath.core.events import Event, EventLog
from fedpath.core.exchange.groups import to_arrays
from fedpath.core.exchange.messages import (
    Describe,
    Description,
    Finish,
    Order,
    Receipt,
    Refuse,
    Train,
    Update,
)
from fedpath.core.exchange.stored import ArrayFile
from fedpath.core.exchange.wire import hash_arrays, unpack
from fedpath.core.recipes import find_recipe
from fedpath.core.training.alone import initial_model
from fedpath.server.records import RoundManifest, read_rounds
from fedpath.server.rounds import facts_of
from fedpath.server.talk import Asked, Reply, Silence, Talk, replies

pytestmark = pytest.mark.system

NAMES = tuple("ABCD")
SETTINGS: dict[str, Any] = {
    "federation": {"name": "test", "sites": list(NAMES)},
    "server": {"address": "localhost:1"},
    "task": {"labels": ["normal", "tumour"]},
    "features": {"encoder": "noise", "width": WIDTH, "mpp": 0.5, "patch_px": 128},
    "model": {"name": "acmil", "options": {"inner": 4, "attention": 4}},
    "training": {"rounds": 2, "learning_rate": 0.01},
}
CONFIG = simulated(FederationConfig.model_validate(SETTINGS), NAMES)


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    with processes_on("local", 2, 0.0) as processes:
        yield processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four hospitals; not to be changed."""
    folder = tmp_path_factory.mktemp("hospitals")
    write_sites(folder, NAMES)
    return folder


def hospitals_in(folder: Path, state: Path) -> dict[str, SiteConfig]:
    """The hospitals of a folder, with states of their own for a test."""
    return {
        name: load_site(folder / name / "site.toml").model_copy(update={"state": state / "state" / name})
        for name in NAMES
    }


def talk_over(processes: Processes, hospitals: Mapping[str, SiteConfig], out: Path, **options: Any) -> RayTalk:
    (out / "answers").mkdir(parents=True)
    return RayTalk(hospitals, "test", processes, out / "answers", options.pop("events", EventLog()), **options)


def run(config: FederationConfig, talk: Talk, out: Path) -> list[RoundManifest]:
    coordinate(config, "run", out / "run", talk, EventLog(), threading.Event())
    return read_rounds(out / "run")


class Dies(Failures):
    """Named hospitals, in named rounds, at an event."""

    def __init__(self, *when: tuple[str, int, str]) -> None:
        object.__setattr__(self, "when", {(site, round_): event for site, round_, event in when})

    def die_at(self, site: str, order: Order) -> str | None:
        return self.when.get((site, order.round)) if isinstance(order, Train) else None


def test_there_is_one_cluster_at_a_time(processes: Processes) -> None:
    with connected("local", "--ray-address") as ray:
        assert ray is processes.ray
    assert processes.ray.is_initialized()


# --- the same as in one process ---------------------------------------------------------------------------------------


def test_the_same_bits_as_in_one_process(processes: Processes, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    alone = run(CONFIG, Sites(tmp_path / "copy", NAMES), tmp_path / "alone")
    for at_once in (1, 2, 3):
        out = tmp_path / str(at_once)
        talk = talk_over(Processes(processes.ray, at_once), hospitals_in(folder, out), out)
        manifests = run(CONFIG, talk, out)
        assert [manifest.result for manifest in manifests] == [manifest.result for manifest in alone]
        assert [manifest.counted() for manifest in manifests] == [list(NAMES)] * 2
        assert talk.online() == set()  # all were told goodbye
        assert (out / "state" / "A" / "run" / "federated.safetensors").is_file()


def test_hospitals_carry_on_what_is_theirs(processes: Processes, folder: Path, tmp_path: Path) -> None:
    """Personal layers and SCAFFOLD's control variates: each order meets a fresh agent in another process."""
    changes = {
        "model": {"name": "transmil", "options": {"inner": 8, "heads": 2}},
        "local": {"method": "scaffold", "personal": ["norm"], "steps": 3, "learning_rate_scale": {"B": 0.5}},
        "training": SETTINGS["training"] | {"rounds": 3},
    }
    config = simulated(FederationConfig.model_validate(SETTINGS | changes), NAMES)
    shutil.copytree(folder, tmp_path / "copy")
    alone = run(config, Sites(tmp_path / "copy", NAMES), tmp_path / "alone")
    talk = talk_over(Processes(processes.ray, 2), hospitals_in(folder, tmp_path), tmp_path)
    assert [manifest.result for manifest in run(config, talk, tmp_path)] == [manifest.result for manifest in alone]
    models = {(tmp_path / "state" / name / "run/federated.safetensors").read_bytes() for name in NAMES}
    assert len(models) == len(NAMES)


def test_buffers_do_not_depend_on_who_is_first(processes: Processes, folder: Path, tmp_path: Path) -> None:
    config = CONFIG.model_validate(CONFIG.model_dump() | {"asynchronous": {"buffer": 2}})
    results = []
    for at_once in (1, 2):
        out = tmp_path / str(at_once)
        talk = talk_over(Processes(processes.ray, at_once), hospitals_in(folder, out), out, in_order=True)
        results.append([(manifest.result, manifest.counted()) for manifest in run(config, talk, out)])
    assert results[0] == results[1]
    assert [len(counted) for _, counted in results[0]] == [2, 2]


def test_stages_find_what_earlier_ones_left(processes: Processes, folder: Path, tmp_path: Path) -> None:
    stages = [
        {"kind": "train", "name": "first", "training": {"rounds": 1}, "model": {"name": "mean-pool"}},
        {"kind": "train", "name": "second"},
    ]
    config = simulated(FederationConfig.model_validate(SETTINGS | {"stage": stages}), NAMES)
    talk = talk_over(processes, hospitals_in(folder, tmp_path), tmp_path, keep_models=False)
    summary = coordinate(config, "run", tmp_path / "run", talk, EventLog(), threading.Event())
    assert [stage["sites"] for stage in summary["stages"]] == [list(NAMES)] * 2
    kept = {path.parent.name for path in (tmp_path / "state" / "B").rglob("federated.safetensors")}
    assert kept == {"first"}  # a later stage may need it; the last one's is in the run's folder


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_hospital_whose_process_dies_and_one_whose_data_is_broken(processes: Processes, tmp_path: Path) -> None:
    write_sites(tmp_path, NAMES)
    (tmp_path / "D" / "features" / "slide-D-05.h5").write_bytes(b"torn")
    seen: list[Event] = []
    talk = talk_over(
        processes,
        hospitals_in(tmp_path, tmp_path),
        tmp_path,
        failures=Dies(("B", 1, "trained")),
        events=EventLog(None, seen.append),
    )
    first, second = run(CONFIG, talk, tmp_path)
    assert (first.counted(), second.counted()) == (["A", "C"], ["A", "B", "C"])
    assert (first.sites["B"].outcome, first.sites["B"].reason) == ("lost", "its process ended")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "slide-D-05.h5" in summary["refused"]["D"]
    assert summary["sites"] == ["A", "B", "C"]
    assert summary["rounds_counted"]["B"] == [2]
    (ended,) = [event for event in seen if event.kind == "process_ended"]
    assert (ended.values["site"], ended.values["order"], ended.values["round"]) == ("B", "train", 1)


def test_a_fault_of_the_program_is_one_hospitals(processes: Processes, folder: Path, tmp_path: Path) -> None:
    hospitals = hospitals_in(folder, tmp_path)
    hospitals["C"].state.parent.mkdir(parents=True)
    hospitals["C"].state.write_text("a file in the place of a folder")
    seen: list[Event] = []
    talk = talk_over(processes, hospitals, tmp_path, events=EventLog(None, seen.append))
    first, _ = run(CONFIG, talk, tmp_path)
    assert first.counted() == ["A", "B", "D"]
    assert "FileExistsError" in json.loads((tmp_path / "run" / "summary.json").read_text())["refused"]["C"]
    assert any("cli/simulate/hospital.py" in event.values.get("details", "") for event in seen)


def test_too_few_are_left(processes: Processes, folder: Path, tmp_path: Path) -> None:
    dying = Dies(*[(site, 1, "validated") for site in "ABC"])
    talk = talk_over(processes, hospitals_in(folder, tmp_path), tmp_path, failures=dying)
    with pytest.raises(FederationError, match=r"round 1: 1 of 2 sites gave a usable update .*B: its process ended"):
        run(CONFIG, talk, tmp_path)


# --- the conversation -------------------------------------------------------------------------------------------------


def orders_of(talk: Talk, config: FederationConfig) -> tuple[dict[str, Train], dict[str, Any]]:
    model = to_arrays(initial_model(config))
    order = Train(
        facts=facts_of(config, "run"),
        round=1,
        rounds=2,
        base=hash_arrays(model),
        local_epochs=1,
        learning_rate=0.01,
        weight_decay=0.0,
        class_weights=False,
    )
    return dict.fromkeys(sorted(talk.online()), order), model


def heard(talk: Talk, asked: list[Asked]) -> dict[str, Reply]:
    return {reply.site: reply for reply in replies(talk, asked, time.monotonic() + 60, threading.Event())}


def test_large_answers_come_as_files(processes: Processes, folder: Path, tmp_path: Path) -> None:
    wide = CONFIG.model_copy(update={"model": CONFIG.model.model_copy(update={"options": {"inner": 1024}})})
    talk = talk_over(processes, hospitals_in(folder, tmp_path), tmp_path)
    orders, model = orders_of(talk, wide)
    got = heard(talk, talk.post(orders, model, 60))
    assert sorted(got) == list(NAMES)
    for reply in got.values():
        assert isinstance(reply.answer, Update)
        assert unpack(reply.content)[1] == {}
        assert reply.file is not None
        with ArrayFile(reply.file) as file:
            assert file.names == model.keys()
        assert reply.received_bytes > reply.file.stat().st_size
        assert reply.sent_bytes > sum(array.nbytes for array in model.values())


def test_who_is_there(processes: Processes, folder: Path, tmp_path: Path) -> None:
    talk = talk_over(
        processes, hospitals_in(folder, tmp_path), tmp_path, failures=Dies(("A", 1, "validated")), keep_models=False
    )
    orders, model = orders_of(talk, CONFIG)
    got = heard(talk, talk.post(orders, model, 60))
    assert isinstance(got["A"].answer, Silence)
    assert talk.online() == {"B", "C", "D"}
    # Again in the same round: it is not there, and nothing is started.
    (again,) = heard(talk, talk.post({"A": orders["A"]}, model, 60)).values()
    assert again.answer == Silence("its process ended")
    # At another question it is.
    described = heard(talk, talk.post(dict.fromkeys(NAMES, Describe(facts=orders["B"].facts)), {}, 60))
    assert all(isinstance(reply.answer, Description) for reply in described.values())
    assert talk.online() == set(NAMES)
    # Who is refused, or has heard that the run is over, stays away.
    refuse = Refuse(facts=orders["B"].facts, reason="why not")
    finish = Finish(facts=orders["B"].facts, base=hash_arrays(model), best_round=1)
    got = heard(talk, [*talk.post({"A": refuse}, {}, 60), *talk.post({"B": finish}, model, 60)])
    assert all(isinstance(reply.answer, Receipt) for reply in got.values())
    assert talk.online() == {"C", "D"}
    assert not list(tmp_path.rglob("federated.safetensors"))
    (gone,) = heard(talk, talk.post({"A": orders["A"]}, model, 60)).values()
    assert isinstance(gone.answer, Silence)


def test_a_dropped_order_frees_its_process(processes: Processes, folder: Path, tmp_path: Path) -> None:
    talk = talk_over(Processes(processes.ray, 1), hospitals_in(folder, tmp_path), tmp_path)
    endless, model = orders_of(talk, CONFIG)
    endless = {site: order.model_copy(update={"local_epochs": 50}) for site, order in endless.items()}
    first, second, third, _ = asked = talk.post(endless, model, 60)
    wait_until(lambda: (tmp_path / "state" / "A" / "events.jsonl").exists(), "A is at work")
    talk.drop(first)
    talk.drop(third)  # that was not begun
    got = heard(talk, [one for one in asked if one not in (first, third)])
    assert sorted(got) == ["B", "D"]
    assert all(isinstance(reply.answer, Update) for reply in got.values())
    assert not (tmp_path / "state" / "C").exists()
    assert talk.next_reply([second], 0.0) is None


# --- the command ------------------------------------------------------------------------------------------------------

TOML = f"""
[federation]
name = "test"
sites = ["A", "B"]
[server]
address = "localhost:1"
[task]
labels = ["normal", "tumour"]
[features]
encoder = "noise"
width = {WIDTH}
mpp = 0.5
patch_px = 128
[model]
name = "acmil"
options = {{ inner = 4, attention = 4 }}
[training]
rounds = 4
learning_rate = 0.01
"""


def start(folder: Path, *arguments: str | Path, text: str = TOML) -> subprocess.Popen[str]:
    """Start `fedpath simulate` in a folder."""
    (folder / "federation.toml").write_text(text)
    command = [sys.executable, "-m", "fedpath.cli", "simulate", "--config", "federation.toml", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def end(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def test_a_drawn_federation_from_the_command(tmp_path: Path) -> None:
    output = end(start(tmp_path, "--sites", "8", "--failures", "0.1", "--seed", "5", "--skew", "0.5", "--workers", "2"))
    assert "8 hospitals, 2 at a time" in output
    assert "round 4 of 4" in output
    assert "its process ended" in output
    assert "raylet" not in output  # what Ray has to say of it is in its logs
    assert "test AUC" in output
    out = tmp_path / "fedpath-simulation"
    assert {path.name for path in out.iterdir()} == {"events.jsonl", "runs", "simulation.json"}
    (run_folder,) = (out / "runs").iterdir()
    summary = json.loads((run_folder / "summary.json").read_text())
    manifests = read_rounds(run_folder)
    lost = [site for manifest in manifests for site in manifest.sites if site not in manifest.counted()]
    assert lost
    assert summary["rounds"] == 4
    assert (run_folder / "best.safetensors").is_file()


def test_a_simulation_that_was_killed_goes_on(tmp_path: Path) -> None:
    """The simulation of a recipe, once with its output for programs."""
    recipe = find_recipe("acmil").text.replace("rounds = 20", "rounds = 4")
    whole = ["--sites", "6", "--workers", "2", "--out"]
    told = [
        json.loads(line) for line in end(start(tmp_path, *whole, "undisturbed", "--json", text=recipe)).splitlines()
    ]
    assert [line["kind"] for line in told].count("round_finished") == 4
    assert told[-1]["kind"] == "result"
    assert len(told[-1]["summary"]["test"]) == 6
    killed = start(tmp_path, *whole, "killed", text=recipe)
    wait_until(lambda: bool(list(tmp_path.glob("killed/runs/*/rounds/0002.json"))), "round 2 is done")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    if killed.stdout is not None:
        killed.stdout.close()
    output = end(start(tmp_path, *whole, "killed", text=recipe))
    assert "rounds are done already" in output
    results = []
    for name in ("undisturbed", "killed"):
        (run_folder,) = (tmp_path / name / "runs").iterdir()
        results.append([manifest.result for manifest in read_rounds(run_folder)])
        assert (tmp_path / name / "hospitals" / "site-001" / "state").is_dir()
    assert results[0] == results[1]
