"""The commands `cohort from-table` and `train`, run as a user runs them."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command import fedpath
from hospitals import FEDERATION, SITE

from fedpath.core.cohort import load_cohort, load_examples
from fedpath.core.models import load_model
from fedpath.core.training import auc, evaluate

FIGURES = ["auc", "balanced_accuracy", "macro_f1", "brier_score", "calibration_error"]


def test_trains_pooled_data_and_writes_models_and_metrics(hospitals: Path, tmp_path: Path) -> None:
    sites = [part for site in "AB" for part in ("--site", hospitals / site / "site.toml")]
    run = fedpath("train", "--config", hospitals / "federation.toml", *sites, "--out", tmp_path)
    assert run.code == 0, run.err
    assert "test AUC" in run.out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["sites"] == ["A", "B"]
    assert [entry["epoch"] for entry in metrics["history"]] == [2, 4, 6]
    assert metrics["test"]["patients"] == 8
    assert list(metrics["averaging"]) == FIGURES
    for name in FIGURES:
        figure = metrics["test"][name]
        assert 0 <= figure["low"] <= figure["high"] <= 1
    assert metrics["settings"]["training"]["rounds"] == 3
    assert (metrics["epochs"], metrics["planned_epochs"]) == (6, 6)

    model, metadata = load_model(tmp_path / "best.safetensors")
    assert metadata["trained_on"] == "A,B"
    assert json.loads(metadata["labels"]) == ["no", "yes"]
    assert metadata["epoch"] == str(metrics["best_epoch"])
    test = []
    for site in "AB":
        cohort = load_cohort(hospitals / site / "manifest.csv", labels=["no", "yes"])
        test += load_examples(cohort, hospitals / site / "features", "test", width=4)
    assert evaluate(model, test).auc == metrics["test"]["auc"]["value"]

    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["site"], row["patient_id"], row["slide_id"], row["label"]) for row in rows] == [
        (site, example.patient_id, example.slide_id, ["no", "yes"][example.target])
        for site, example in zip("AAAABBBB", test, strict=True)
    ]
    scores = [float(row["probability_yes"]) for row in rows]
    assert auc([row["label"] == "yes" for row in rows], scores) == metrics["test"]["auc"]["value"]
    assert all(float(row["probability_no"]) + float(row["probability_yes"]) == pytest.approx(1) for row in rows)
    for picture in ("curves", "reliability"):
        assert (tmp_path / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / f"{picture}.svg").read_text()


def test_a_log_shows_a_line_a_validation(hospitals: Path, tmp_path: Path) -> None:
    run = fedpath(
        "train", "--config", hospitals / "federation.toml", "--site", hospitals / "A" / "site.toml", "--out", tmp_path
    )
    first, *lines = run.out.splitlines()
    assert first.startswith("A: 12 train, 4 validation, 4 test patients; cpu, ")
    history = json.loads((tmp_path / "metrics.json").read_text())["history"]
    for line, entry in zip(lines, history, strict=False):
        assert line.startswith(f"A: epoch {entry['epoch']}/6, loss {entry['train_loss']:.3f}, validation AUC ")
    assert [line.split(" 0.")[0].split(" 1.")[0] for line in lines[3:8]] == [
        "test AUC", "test balanced accuracy", "test macro F1", "test Brier score", "test calibration error",
    ]  # fmt: skip
    assert lines[8].startswith("best of epoch ")


def test_two_processes_write_the_same_bytes(hospitals: Path, tmp_path: Path) -> None:
    """With dropout, accumulation and patience, whatever seeds Python's hashes."""
    config = FEDERATION.replace("attention = 8", "attention = 8, dropout = 0.3") + "accumulate_bags = 5\npatience = 2\n"
    (tmp_path / "federation.toml").write_text(config)
    for name in ("one", "two"):
        arguments = ["--config", tmp_path / "federation.toml", "--site", hospitals / "A" / "site.toml", "--out", name]
        subprocess.run(
            [sys.executable, "-m", "fedpath.cli", "train", *map(str, arguments)],
            check=True,
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"PYTHONHASHSEED": "1" if name == "one" else "2"},
        )
    names = ["best.safetensors", "last.safetensors", "metrics.json", "predictions.csv", "curves.svg", "reliability.png"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert json.loads((tmp_path / "one" / "metrics.json").read_text())["settings"]["training"]["accumulate_bags"] == 5


def test_patience_ends_the_run_and_says_so(hospitals: Path, tmp_path: Path) -> None:
    config = tmp_path / "federation.toml"
    config.write_text(FEDERATION.replace("rounds = 3", "rounds = 40\npatience = 2").replace("3e-3", "3e-2"))
    run = fedpath("train", "--config", config, "--site", hospitals / "B" / "site.toml", "--out", tmp_path / "out")
    assert run.code == 0, run.err
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["epochs"] < metrics["planned_epochs"] == 80
    assert metrics["best_epoch"] == metrics["epochs"] - 2 * 2
    assert len(metrics["history"]) == metrics["epochs"] / 2
    assert f"ended after epoch {metrics['epochs']} of 80: no better model in 2 validations" in run.out
    assert load_model(tmp_path / "out" / "last.safetensors")[1]["epoch"] == str(metrics["epochs"])


def test_patience_without_validation_is_an_error(hospitals: Path, tmp_path: Path) -> None:
    (tmp_path / "federation.toml").write_text(FEDERATION + "patience = 2\n")
    rows = [f"bag{bag},bag{bag},{'yes' if bag % 2 else 'no'},train" for bag in range(40)]
    rows = [row for row in rows if (hospitals / "A" / "features" / f"{row.split(',')[0]}.h5").exists()]
    (tmp_path / "manifest.csv").write_text("\n".join(["slide_id,patient_id,label,split", *rows]))
    (tmp_path / "site.toml").write_text(SITE.format(name="A").replace('"features', f'"{hospitals}/A/features'))
    arguments = (
        "train",
        "--config",
        tmp_path / "federation.toml",
        "--site",
        tmp_path / "site.toml",
        "--out",
        tmp_path / "out",
    )
    fedpath(*arguments).assert_error(2, "training.patience needs validation patients", "remove patience")
    # Without patience it trains; there is nothing to choose by, and nothing to test.
    (tmp_path / "federation.toml").write_text(FEDERATION)
    run = fedpath(*arguments)
    assert run.code == 0, run.err
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["test"], metrics["best_epoch"]) == (None, 6)
    assert (tmp_path / "out" / "curves.png").exists()
    assert not (tmp_path / "out" / "reliability.png").exists()


def test_the_hospital_decides_on_the_precision(hospitals: Path, tmp_path: Path) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        folder = tmp_path / precision
        folder.mkdir()
        site = SITE.format(name="A").replace('"manifest', f'"{hospitals}/A/manifest')
        site = site.replace('"features', f'"{hospitals}/A/features') + f'[compute]\nprecision = "{precision}"\n'
        (folder / "site.toml").write_text(site)
        run = fedpath(
            "train", "--config", hospitals / "federation.toml", "--site", folder / "site.toml", "--out", folder
        )
        assert run.code == 0, run.err
        assert f"; cpu, {precision}" in run.out
        has_amx = "amx_tile" in Path("/proc/cpuinfo").read_text()
        assert ("bfloat16 is slower" in run.err) == (precision == "bfloat16" and not has_amx)
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["settings"]["precision"] == precision
        losses.append(metrics["history"][-1]["train_loss"])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_without_matplotlib_there_are_no_pictures_but_all_else(
    hospitals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    site = hospitals / "A" / "site.toml"
    run = fedpath("train", "--config", hospitals / "federation.toml", "--site", site, "--out", tmp_path)
    assert run.code == 0, run.err
    assert run.out.splitlines()[-1] == "no pictures: pip install 'fedpath[report]'"
    assert {path.name for path in tmp_path.iterdir()} == {
        "best.safetensors", "last.safetensors", "metrics.json", "predictions.csv",
    }  # fmt: skip


def test_the_same_seed_gives_the_same_files(hospitals: Path, tmp_path: Path) -> None:
    for name, seed in (("one", []), ("two", ["--seed", "0"]), ("other", ["--seed", "1"])):
        site = hospitals / "A" / "site.toml"
        run = fedpath(
            "train", "--config", hospitals / "federation.toml", "--site", site, "--out", tmp_path / name, *seed
        )
        assert run.code == 0, run.err
    contents = [(tmp_path / name / "last.safetensors").read_bytes() for name in ("one", "two", "other")]
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


@pytest.mark.parametrize(
    ("old", "new", "code", "words"),
    [
        ("width = 4", "width = 5", 3, ["site A: width is 4, the federation asks for 5"]),
        ('["no", "yes"]', '["no", "ja"]', 3, ["manifest.csv, line ", "label 'yes'"]),
        ('"acmil"', '"acmill"', 2, ["model.name = 'acmill'", "did you mean 'acmil'?"]),
        ("attention = 8", "atention = 8", 2, ["model.options.atention", "did you mean 'attention'?"]),
        ("learning_rate = 3e-3", "learning_rate = 1e30", 2, ["training diverged", "lower training.learning_rate"]),
    ],
)
def test_a_fault_is_one_line_and_a_remedy(
    hospitals: Path, tmp_path: Path, old: str, new: str, code: int, words: list[str]
) -> None:
    config = tmp_path / "federation.toml"
    config.write_text(FEDERATION.replace(old, new))
    run = fedpath("train", "--config", config, "--site", hospitals / "A" / "site.toml", "--out", tmp_path / "out")
    assert run.code == code
    assert "Traceback" not in run.err
    assert [line.split(":")[0] for line in run.err.splitlines()] == ["error", "remedy"]
    for word in words:
        assert word in run.err
    assert not (tmp_path / "out").exists()


def test_a_bad_table_is_one_line_and_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("label,bag,f1\n")
    run = fedpath("cohort", "from-table", tmp_path / "table.csv", "--out", tmp_path / "out")
    assert run.code == 3
    assert run.err.splitlines() == [
        f"error: {tmp_path}/table.csv, line 1: could not convert string to float: 'f1'",
        "remedy: features are numbers; name a header row with --header",
    ]


def test_features_of_another_encoder_are_not_mixed_in(hospitals: Path, tmp_path: Path) -> None:
    config = tmp_path / "federation.toml"
    config.write_text(FEDERATION.replace('encoder = "table"', 'encoder = "uni_v1"'))
    run = fedpath("train", "--config", config, "--site", hospitals / "A" / "site.toml", "--out", tmp_path / "out")
    assert run.code == 3
    assert "error: site A: encoder is 'table', the federation asks for 'uni_v1'" in run.err
    assert not (tmp_path / "out").exists()
