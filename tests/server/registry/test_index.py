"""The registry is an index: it is made from the runs' folders, again and again, and holds what they hold."""

import json
import shutil
from pathlib import Path

import pytest

from fedpath.server.records import read_rounds
from fedpath.server.registry import Registry
from fedpath.server.registry.index import Indexer, index_folders
from fedpath.server.registry.record import STATE_FILE, read_record


def content(registry: Registry) -> list[object]:
    """Everything in a registry, without the numbers of rows."""
    runs = registry.runs()
    rows = []
    for run in runs:
        history = registry.history(run)
        for row in (run, *history.rounds, *history.parts):
            values = {c.key: getattr(row, c.key) for c in row.__table__.columns if c.key not in ("id", "run_id")}
            rows.append((row.__tablename__, values))
    return rows


def test_rounds_and_sites_are_those_of_the_manifests(state: Path) -> None:
    registry = Registry.open(state)
    assert index_folders(registry, state / "runs") == []
    (run,) = registry.runs()
    summary = json.loads((Path(run.folder or "") / "summary.json").read_text())
    assert (run.state, run.done, run.rounds, run.exit_code) == ("finished", 2, 2, 0)
    assert (run.best_round, run.best_auc) == (summary["best_round"], summary["validation_auc"])
    history = registry.history(run)
    manifests = read_rounds(Path(run.folder or ""))
    assert [(row.round, row.base, row.result) for row in history.rounds] == [
        (manifest.round, manifest.base, manifest.result) for manifest in manifests
    ]
    assert [(part.round, part.site, part.outcome, part.patients) for part in history.parts] == [
        (manifest.round, site, part.outcome, part.patients)
        for manifest in manifests
        for site, part in manifest.sites.items()
    ]
    assert {name: site.encoder for name, site in registry.sites("test").items()} == dict.fromkeys("ABC", "noise")


def test_indexing_again_changes_nothing(state: Path) -> None:
    registry = Registry.open(state)
    index_folders(registry, state / "runs")
    before = content(registry)
    index_folders(registry, state / "runs")
    assert content(registry) == before


def test_a_lost_database_is_made_again(state: Path) -> None:
    registry = Registry.open(state)
    index_folders(registry, state / "runs")
    before = content(registry)
    registry.close()
    for path in state.glob("registry.db*"):
        path.unlink()
    again = Registry.open(state)
    index_folders(again, state / "runs")
    assert content(again) == before


def test_a_round_that_is_done_again_replaces_the_one_that_was_lost(state: Path) -> None:
    registry = Registry.open(state)
    index_folders(registry, state / "runs")
    (run,) = registry.runs()
    folder = Path(run.folder or "")
    second = folder / "rounds/0002.json"
    second.rename(second.with_suffix(".json.lost"))
    indexer = Indexer(registry, run, folder)
    indexer.look()
    assert [row.round for row in registry.history(run).rounds] == [1]
    assert {part.round for part in registry.history(run).parts} == {1}
    manifest = json.loads(second.with_suffix(".json.lost").read_text())
    second.write_text(json.dumps(manifest | {"result": "f" * 64}))
    indexer.look()
    assert [row.result for row in registry.history(run).rounds][1] == "f" * 64


@pytest.mark.parametrize("file", ["rounds/0002.json", "run.json", STATE_FILE])
def test_a_damaged_run_is_named_and_the_others_are_taken_in(state: Path, file: str) -> None:
    (folder,) = (state / "runs").iterdir()
    shutil.copytree(folder, folder.with_name("20200101-000000"))
    (folder / file).write_text("{")
    registry = Registry.open(state)
    (trouble,) = index_folders(registry, state / "runs")
    assert str(folder / file) in trouble
    assert "20200101-000000" in [run.run for run in registry.runs()]


def test_the_later_account_of_a_run_stands(state: Path) -> None:
    """The registry could not be reached when the run ended: its folder knows; and the other way round."""
    registry = Registry.open(state)
    index_folders(registry, state / "runs")
    (run,) = registry.runs()
    folder = Path(run.folder or "")
    (folder / "summary.json").unlink()
    registry.move(run, (), "running")
    record = json.loads((folder / STATE_FILE).read_text())
    told = {"state": "failed", "error": "too few", "exit_code": 6, "revision": run.revision + 1}
    (folder / STATE_FILE).write_text(json.dumps(record | told))
    index_folders(registry, state / "runs")
    (run,) = registry.runs()
    assert (run.state, run.error, run.exit_code) == ("failed", "too few", 6)
    registry.move(run, (), "queued")
    index_folders(registry, state / "runs")
    assert registry.runs()[0].state == "queued"
    kept = read_record(folder)
    assert kept is not None
    assert kept.state == "queued"
