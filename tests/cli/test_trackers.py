"""TensorBoard and MLflow, both real: what arrives there, and that it names nobody."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from command import Run, fedpath
from federation import free_port

from fedpath.cli.train.trackers import MLflow

CURVES = {
    "train/loss", "train/learning_rate", "validation/loss", "validation/auc", "validation/balanced_accuracy",
    "validation/macro_f1",
}  # fmt: skip
TESTED = {"test/auc", "test/balanced_accuracy", "test/macro_f1", "test/brier_score", "test/calibration_error"}


def train(hospitals: Path, out: Path, *more: str | Path) -> Run:
    site = hospitals / "A" / "site.toml"
    return fedpath("train", "--config", hospitals / "federation.toml", "--site", site, "--out", out, *more)


def history(folder: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((folder / "metrics.json").read_text())["history"]
    return entries


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def assert_names_nobody(content: bytes, hospitals: Path) -> None:
    """No slide, no patient, no place."""
    for path in (hospitals / "A" / "features").glob("*.h5"):
        assert path.stem.encode() not in content
    assert str(hospitals).encode() not in content


def test_tensorboard_gets_the_curves_once(hospitals: Path, tmp_path: Path) -> None:
    for _ in range(2):  # the second run replaces the first one's curves, as it replaces its models
        run = train(hospitals, tmp_path, "--tensorboard")
        assert run.code == 0, run.err
    found = scalars(tmp_path / "tensorboard")
    assert found.keys() == CURVES | TESTED
    entries = history(tmp_path)
    assert found["train/loss"] == [(entry["epoch"], pytest.approx(entry["train_loss"])) for entry in entries]
    assert found["validation/auc"] == [(e["epoch"], pytest.approx(e["validation"]["auc"])) for e in entries]
    assert found["train/learning_rate"] == [
        (2, pytest.approx(3e-3 * 0.75)), (4, pytest.approx(3e-3 * 0.25)), (6, pytest.approx(0, abs=1e-9)),
    ]  # fmt: skip
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert_names_nobody(file.read_bytes(), hospitals)


def test_a_fold_has_curves_of_its_own(hospitals: Path, tmp_path: Path) -> None:
    run = train(hospitals, tmp_path, "--tensorboard", "--folds", "2")
    assert run.code == 0, run.err
    for number in (1, 2):
        found = scalars(tmp_path / "tensorboard" / f"fold-{number}")
        assert [value for _, value in found["train/loss"]] == [
            pytest.approx(entry["train_loss"]) for entry in history(tmp_path / f"fold-{number}")
        ]


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow in a file; making its tables takes seconds."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").create_experiment("another")
    return path


@pytest.fixture
def database(empty_database: Path, tmp_path: Path) -> str:
    """The address of an MLflow of the test's own."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


def runs_in(database: str) -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=database)
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]))


def test_mlflow_gets_the_same(hospitals: Path, tmp_path: Path, database: str) -> None:
    from mlflow.tracking import MlflowClient

    out = tmp_path / "out"
    run = train(hospitals, out, "--mlflow", database)
    assert run.code == 0, run.err
    (record,) = runs_in(database)
    assert record.info.status == "FINISHED"
    assert record.data.metrics.keys() == CURVES | TESTED
    # Neither who ran it nor where nor from which files.
    assert record.data.tags == {"mlflow.runName": "A"}
    assert record.data.params == {}
    losses = MlflowClient(tracking_uri=database).get_metric_history(record.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in losses] == [(e["epoch"], e["train_loss"]) for e in history(out)]
    assert_names_nobody((tmp_path / "mlflow.db").read_bytes().replace(str(tmp_path).encode(), b""), hospitals)

    run = train(hospitals, tmp_path / "folds", "--mlflow", database, "--folds", "2")
    assert run.code == 0, run.err
    assert [record.info.run_name for record in runs_in(database)] == ["A", "A fold 1", "A fold 2"]


def test_a_training_that_fails_is_a_failed_run(hospitals: Path, tmp_path: Path, database: str) -> None:
    config = tmp_path / "federation.toml"
    config.write_text((hospitals / "federation.toml").read_text().replace("3e-3", "1e30"))
    arguments = ("--site", hospitals / "A" / "site.toml", "--out", tmp_path / "out", "--mlflow", database)
    fedpath("train", "--config", config, *arguments).assert_error(2, "training diverged")
    (record,) = runs_in(database)
    assert record.info.status == "FAILED"


@pytest.mark.parametrize(
    ("uri", "words"), [("nonsense://x", "unsupported URI 'nonsense://x'"), ("mlruns", "filesystem tracking backend")]
)
def test_an_address_that_is_none_is_an_error_before_training(
    hospitals: Path, tmp_path: Path, uri: str, words: str
) -> None:
    train(hospitals, tmp_path / "out", "--mlflow", uri).assert_error(
        2, f"--mlflow {uri}: ", words, "sqlite:///mlflow.db"
    )
    assert not (tmp_path / "out").exists()


def test_a_server_that_is_not_there_is_soon_an_error(
    hospitals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the user's own word counts
    uri = f"http://127.0.0.1:{free_port()}"
    train(hospitals, tmp_path / "out", "--mlflow", uri).assert_error(2, f"--mlflow {uri}: ", "a server that runs")


def test_a_tracker_that_goes_away_costs_its_curve_only(
    tmp_path: Path, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = MLflow(database, "small", "A")
    tracker.scalar("train/loss", 0.5, 1)
    tracker.scalar("no such / name?", 0.5, 1)  # MLflow refuses it, as it would anything else
    said = capsys.readouterr().err
    assert said.startswith("MLflow: ")
    assert said.endswith("; training goes on without it\n")
    tracker.scalar("train/loss", 0.25, 2)
    tracker.close()
    assert capsys.readouterr().err == ""
    (record,) = runs_in(database)
    assert record.data.metrics == {"train/loss": 0.5}


@pytest.mark.parametrize(
    ("option", "package", "remedy"),
    [
        (("--tensorboard",), "tensorboard", "pip install 'fedpath[track]'"),
        (("--mlflow", "sqlite:///x.db"), "mlflow", "pip install mlflow-skinny"),
    ],
)
def test_a_package_that_is_not_installed_is_named_before_training(
    hospitals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: tuple[str, ...], package: str, remedy: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    run = train(hospitals, tmp_path / "out", *option)
    run.assert_error(2, f"needs {package}, which is not installed")
    assert run.err.splitlines()[1] == f"remedy: {remedy}"
    assert not (tmp_path / "out").exists()
