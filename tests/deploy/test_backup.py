"""Copies of a coordinator's folder, made while it ran: each goes on to the weights of the run it was taken of."""

import importlib.util
import sqlite3
import subprocess
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
from deploy_files import ROOT
from in_process import Sites, settings, write_sites

from fedpath.core.config import FederationConfig
from fedpath.core.events import EventLog
from fedpath.core.models import load_model
from fedpath.core.training.alone import initial_model
from fedpath.server.folder import SUMMARY_FILE, RunFolder
from fedpath.server.registry.index import index_folders
from fedpath.server.registry.registry import Registry
from fedpath.server.rounds import FederatedRun
from fedpath.server.runs import RUNS_FOLDER, open_run

SCRIPT = ROOT / "deploy" / "backup" / "backup.py"
CONFIG = settings(
    "AB",
    server={"address": "localhost:1", "grace_s": 0.0, "join_timeout_s": 1.0},
    training={"rounds": 4, "learning_rate": 0.01},
    deadline={"quorum_wait_s": 0.0},
)


def load() -> ModuleType:
    specification = importlib.util.spec_from_file_location("fedpath_backup", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def run(*words: str | Path) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, timeout=60, check=False)


def restore(archive: Path, to: Path) -> Path:
    """As the pages say it."""
    to.mkdir()
    subprocess.run(["tar", "-xf", archive, "-C", to], check=True, timeout=60)
    return to


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A coordinator's folder by its files."""
    state = tmp_path / "coordinator"
    for name in ("runs/R/rounds/0001.json", "runs/R/models/0001.safetensors", "runs/R/run.json", "registry.json"):
        (state / name).parent.mkdir(parents=True, exist_ok=True)
        (state / name).write_text(name)
    for name in (
        "runs/R/.0002.json.x.tmp",
        "registry.db",
        "registry.db-wal",
        "incoming/x",
        "outgoing/y",
        "events.jsonl",
    ):
        (state / name).parent.mkdir(exist_ok=True)
        (state / name).write_text("x")
    return state


def test_copies_of_a_run_that_goes_on_end_with_its_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedpath.server.gather._RETURN_S", 0.0)  # sites here are there or gone
    config, backup = FederationConfig.model_validate(CONFIG), load()
    write_sites(tmp_path / "hospitals", "AB")
    state, over = tmp_path / "coordinator", threading.Event()

    def serve(state: Path) -> Path:
        opened = open_run(config, state, new=False)
        sites = Sites(tmp_path / "hospitals", "AB")
        stop = threading.Event()
        folder = RunFolder(opened.folder, config)
        FederatedRun(config, opened.name, initial_model(config), sites, folder, EventLog(), stop).execute()
        return opened.folder

    def serve_all() -> Path:
        try:
            return serve(state)
        finally:
            over.set()

    copies: list[Path] = []
    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(serve_all)
        while not over.is_set():
            if not any((state / RUNS_FOLDER).glob("*/run.json")):
                continue
            with backup.frozen(state) as frozen:
                copies.append(tmp_path / f"copy-{len(copies)}.tar")
                with tarfile.open(copies[-1], "w") as archive:
                    archive.add(frozen, arcname=".")
        whole = serving.result()
    expected = _weights(whole)
    # Of each round one, but no more than make a point of it; a copy of the finished run has nothing to go on with.
    moments = {_rounds_in(copy): copy for copy in copies if not _is_finished(copy)}
    assert len(moments) > 2, f"the copies are of few moments: {moments}"
    for done, copy in sorted(moments.items())[:: max(1, len(moments) // 4)]:
        finished = serve(restore(copy, tmp_path / f"restored-{done}"))
        assert finished.name == whole.name
        assert _weights(finished) == expected, f"a copy of round {done}"


def _rounds_in(archive: Path) -> int:
    with tarfile.open(archive) as opened:
        return sum(path.parent.name == "rounds" and path.stem.isdigit() for path in map(Path, opened.getnames()))


def _is_finished(archive: Path) -> bool:
    with tarfile.open(archive) as opened:
        return any(Path(name).name == SUMMARY_FILE for name in opened.getnames())


def _weights(folder: Path) -> dict[str, dict[str, bytes]]:
    return {
        name: {key: tensor.numpy().tobytes() for key, tensor in load_model(folder / name)[0].state_dict().items()}
        for name in ("best.safetensors", "last.safetensors")
    }


def test_the_registry_is_made_again_from_a_copy(tmp_path: Path) -> None:
    """Elsewhere, with the queue: the rows of the old one would name the old folder."""
    config = FederationConfig.model_validate(CONFIG)
    state = tmp_path / "coordinator"
    name = open_run(config, state, new=False).name
    registry = Registry.open(state, None, make=True)
    index_folders(registry, state / RUNS_FOLDER)
    assert run("--dir", state, "--to", tmp_path / "copies").returncode == 0
    (copy,) = (tmp_path / "copies").iterdir()
    elsewhere = restore(copy, tmp_path / "elsewhere")
    again = Registry.open(elsewhere, None, make=True)
    assert index_folders(again, elsewhere / RUNS_FOLDER) == []
    (found,) = again.runs()
    assert (found.run, found.folder) == (name, str(elsewhere / RUNS_FOLDER / name))


def test_what_is_in_a_copy(folder: Path, tmp_path: Path) -> None:
    with sqlite3.connect(folder / "flower.db") as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE node (id INTEGER)")
        database.execute("INSERT INTO node VALUES (7)")
        database.commit()
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "flower" not in path.name}
        done = run("--dir", folder, "--to", tmp_path / "copies")
        assert done.returncode == 0, done.stderr
    copy = Path(done.stdout.decode().strip())
    assert copy.stat().st_mode & 0o777 == 0o600
    restored = restore(copy, tmp_path / "restored")
    assert {str(path.relative_to(restored)) for path in restored.rglob("*") if path.is_file()} == {
        "runs/R/rounds/0001.json",
        "runs/R/models/0001.safetensors",
        "runs/R/run.json",
        "registry.json",
        "events.jsonl",
        "flower.db",
    }
    assert sqlite3.connect(restored / "flower.db").execute("SELECT id FROM node").fetchall() == [(7,)]
    # What was copied is as it was, and nothing is left behind.
    assert {path: path.read_bytes() for path in before} == before
    assert not list(folder.glob(".backup-*"))


def test_a_log_that_is_written_on_does_not_change_the_copy(folder: Path) -> None:
    """A link would: logs are appended to, everything else is replaced."""
    with load().frozen(folder) as frozen:
        with (folder / "events.jsonl").open("a") as file:
            file.write("more")
        replaced = folder / "runs" / "R" / "new"
        replaced.write_text("new")
        replaced.replace(folder / "runs" / "R" / "run.json")
        assert (frozen / "events.jsonl").read_text() == "x"
        assert (frozen / "runs" / "R" / "run.json").read_text() == "runs/R/run.json"
        assert (frozen / "runs/R/models/0001.safetensors").stat().st_nlink == 2


def test_records_come_before_what_they_name(folder: Path) -> None:
    names = [path.name for path in load().in_order(folder)]
    assert names.index("0001.json") < names.index("0001.safetensors")


def test_only_the_newest_copies_are_kept(folder: Path, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    for day in ("01", "02", "03"):
        (copies / f"fedpath-202611{day}T000000Z.tar").write_text("")
    (copies / "mine.txt").write_text("")
    assert run("--dir", folder, "--to", copies, "--keep", "2").returncode == 0
    names = sorted(path.name for path in copies.iterdir())
    assert len(names) == 3
    assert "fedpath-20261103T000000Z.tar" in names
    assert "mine.txt" in names


def test_standard_output(folder: Path, tmp_path: Path) -> None:
    """What `docker compose exec` and `kubectl exec` need."""
    done = run("--dir", folder, "--to", "-")
    assert done.returncode == 0
    (tmp_path / "copy.tar").write_bytes(done.stdout)
    assert (restore(tmp_path / "copy.tar", tmp_path / "restored") / "runs" / "R" / "run.json").is_file()


@pytest.mark.parametrize(("words", "said"), [(("--keep", "0"), "--keep"), ((), "no coordinator's folder")])
def test_what_is_wrong_is_said(tmp_path: Path, folder: Path, words: tuple[str, ...], said: str) -> None:
    done = run("--dir", folder if words else tmp_path, "--to", tmp_path / "copies", *words)
    assert done.returncode == 2
    assert said in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


def test_a_copy_that_fails_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    (folder / "flower.db").write_bytes(b"not a database, and long enough to be taken for one" * 100)
    done = run("--dir", folder, "--to", tmp_path / "copies")
    assert done.returncode == 1
    assert done.stderr.decode().startswith("error: no copy was made: ")
    assert not list(folder.glob(".backup-*"))
    assert not (tmp_path / "copies").exists()
