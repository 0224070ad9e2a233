"""`fedpath train --folds`: its files, its summary, and what happens when it is started again."""

import csv
import json
import shutil
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
from command import Run, fedpath
from hospitals import FEDERATION

from fedpath.core.models import load_model
from fedpath.core.training import auc


def train(hospitals: Path, out: Path, *more: str, config: Path | None = None, sites: str = "A") -> Run:
    chosen = [part for site in sites for part in ("--site", hospitals / site / "site.toml")]
    return fedpath("train", "--config", config or hospitals / "federation.toml", *chosen, "--out", out, *more)


@pytest.fixture(scope="module")
def done(hospitals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folds over both hospitals."""
    out = tmp_path_factory.mktemp("folds") / "out"
    run = train(hospitals, out, "--folds", "3", sites="AB")
    assert run.code == 0, run.err
    assert "A, B: 40 patients in 3 folds, whatever split the manifest gives them" in run.out
    for number in (1, 2, 3):
        assert f"A, B, fold {number} of 3: epoch 6/6, loss " in run.out
        assert f"fold {number} of 3: best epoch " in run.out
    assert "test, 40 patients  mean ± sd of 3 folds  all predictions (95 % CI)" in run.out
    assert "finished before" not in run.out
    return out


@pytest.fixture
def copied(done: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(done, tmp_path / "out"))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_patient_is_tested_once(hospitals: Path, done: Path) -> None:
    rows = rows_of(done / "predictions.csv")
    slides = [(site, path.stem) for site in "AB" for path in (hospitals / site / "features").glob("*.h5")]
    assert sorted((row["site"], row["slide_id"]) for row in rows) == sorted(slides)
    assert [row["fold"] for row in rows] == sorted(row["fold"] for row in rows)
    for number in "123":
        fold = [row for row in rows if row["fold"] == number]
        assert rows_of(done / f"fold-{number}" / "predictions.csv") == fold
        assert {row["label"] for row in fold} == {"no", "yes"}
        model, metadata = load_model(done / f"fold-{number}" / "best.safetensors")
        assert metadata["trained_on"] == "A,B"
        assert not model.training


def test_the_summary_is_that_of_the_folds_and_of_all_predictions(done: Path) -> None:
    summary = json.loads((done / "summary.json").read_text())
    folds = [json.loads((done / f"fold-{number}" / "metrics.json").read_text()) for number in (1, 2, 3)]
    for name, entry in summary["over_folds"].items():
        values = [fold["test"][name]["value"] for fold in folds]
        assert entry["values"] == values
        assert (entry["mean"], entry["sd"]) == (pytest.approx(mean(values)), pytest.approx(stdev(values)))
    rows = rows_of(done / "predictions.csv")
    targets, scores = [row["label"] == "yes" for row in rows], [float(row["probability_yes"]) for row in rows]
    pooled = summary["pooled"]
    assert (pooled["slides"], pooled["patients"]) == (40, 40)
    assert pooled["auc"]["value"] == auc(targets, scores)
    assert pooled["auc"]["low"] <= pooled["auc"]["value"] <= pooled["auc"]["high"]
    assert pooled["brier_score"]["value"] == pytest.approx(np.mean((np.array(scores) - targets) ** 2))
    assert summary["averaging"].keys() == summary["over_folds"].keys()
    for picture in ("curves.png", "curves.svg", "reliability.png", "reliability.svg"):
        assert (done / picture).exists()
    assert "fold 3" in (done / "curves.svg").read_text()


def test_a_finished_fold_is_kept_and_a_missing_one_trained_again_to_the_bit(
    hospitals: Path, done: Path, copied: Path
) -> None:
    # Stopped within fold 2: its models may be there, its figures are not.
    (copied / "fold-2" / "metrics.json").unlink()
    (copied / "fold-2" / "best.safetensors").write_bytes(b"half")
    shutil.rmtree(copied / "fold-3")
    kept = (copied / "fold-1" / "best.safetensors").stat().st_mtime_ns
    for name in ("summary.json", "predictions.csv"):
        (copied / name).unlink()
    run = train(hospitals, copied, "--folds", "3", sites="AB")
    assert run.code == 0, run.err
    assert [line for line in run.out.splitlines() if "finished before" in line] == [
        line for line in run.out.splitlines() if line.startswith("fold 1 of 3")
    ]
    assert (copied / "fold-1" / "best.safetensors").stat().st_mtime_ns == kept
    for path in done.rglob("*"):
        if path.is_file():
            assert (copied / path.relative_to(done)).read_bytes() == path.read_bytes(), path.name


def test_nothing_is_trained_when_all_is_done(hospitals: Path, copied: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.glob("fold-*/*")}
    run = train(hospitals, copied, "--folds", "3", sites="AB")
    assert run.code == 0, run.err
    assert run.out.count("(finished before)") == 3
    assert "epoch 2/6" not in run.out
    assert {path: path.stat().st_mtime_ns for path in copied.glob("fold-*/*")} == before


@pytest.mark.parametrize(
    ("old", "new", "more", "words"),
    [
        (
            "learning_rate = 3e-3",
            "learning_rate = 1e-3",
            ("--folds", "3"),
            "training.learning_rate was 0.003, now 0.001",
        ),
        ("inner = 8", "inner = 9", ("--folds", "3"), "model.options.inner was 8, now 9"),
        ("rounds = 3", "rounds = 2\npatience = 1", ("--folds", "3"), "training.rounds was 3, now 2; 1 more"),
        ("", "", ("--folds", "4"), "fold.of was 3, now 4; 1 more"),
        ("", "", ("--folds", "3", "--seed", "5"), "seed was 0, now 5; 1 more"),
    ],
)
def test_a_finished_fold_of_other_settings_is_neither_mixed_in_nor_overwritten(
    hospitals: Path, copied: Path, tmp_path: Path, old: str, new: str, more: tuple[str, ...], words: str
) -> None:
    shutil.rmtree(copied / "fold-1")  # would be trained first
    config = tmp_path / "federation.toml"
    config.write_text(FEDERATION.replace(old, new) if old else FEDERATION)
    run = train(hospitals, copied, *more, config=config, sites="AB")
    run.assert_error(2, f"fold-2 is a finished fold made with other settings: {words}", "another --out")
    assert not (copied / "fold-1").exists()


def test_other_slides_are_other_settings(hospitals: Path, copied: Path) -> None:
    train(hospitals, copied, "--folds", "3", sites="BA").assert_error(2, 'sites was ["A", "B"], now ["B", "A"]')
    report = json.loads((copied / "fold-1" / "metrics.json").read_text())
    report["settings"]["examples_sha256"] = "0" * 64
    (copied / "fold-1" / "metrics.json").write_text(json.dumps(report))
    run = train(hospitals, copied, "--folds", "3", sites="AB")
    run.assert_error(2, "its slides, labels, splits, features or clinical data were others")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"settings": 3}'])
def test_a_metrics_file_that_is_none_is_named(hospitals: Path, copied: Path, content: str) -> None:
    (copied / "fold-1" / "metrics.json").write_text(content)
    train(hospitals, copied, "--folds", "3", sites="AB").assert_error(2, "fold-1")


def test_predictions_that_somebody_changed_are_named(hospitals: Path, copied: Path) -> None:
    path = copied / "fold-2" / "predictions.csv"
    path.write_text(path.read_text().replace(",no,", ",nein,"))
    train(hospitals, copied, "--folds", "3", sites="AB").assert_error(
        3, "fold-2/predictions.csv: not as it was written"
    )


def test_too_few_patients_of_a_class(hospitals: Path, tmp_path: Path) -> None:
    run = train(hospitals, tmp_path / "out", "--folds", "11")
    run.assert_error(3, "class 'no' has 10 patients, too few for 11 folds", "use --folds 10")
    assert not (tmp_path / "out").exists()


def test_one_fold_is_none(hospitals: Path, tmp_path: Path) -> None:
    assert train(hospitals, tmp_path / "out", "--folds", "1").code == 2
