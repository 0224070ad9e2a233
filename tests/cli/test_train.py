"""The commands `cohort from-table` and `train`, run as a user runs them."""

import json
from pathlib import Path

import numpy as np
import pytest
from command import fedpath

from fedpath.core.cohort import load_cohort, load_examples
from fedpath.core.models import load_model
from fedpath.core.training import evaluate

FEDERATION = """
[federation]
name = "small"
sites = ["A", "B"]
[server]
address = "localhost:1"
[task]
labels = ["no", "yes"]
[features]
encoder = "table"
width = 4
[model]
name = "acmil"
options = { inner = 8, attention = 8 }
[training]
rounds = 3
local_epochs = 2
learning_rate = 3e-3
"""
SITE = """
[site]
name = "{name}"
[data]
manifest = "manifest.csv"
features = "features"
"""


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """federation.toml and two hospitals' cohorts, made from a table by the command."""
    folder = tmp_path_factory.mktemp("hospitals")
    rng = np.random.default_rng(0)
    rows = []
    for bag in range(40):
        positive = bag % 2
        for instance in range(4):
            values = rng.normal(size=4) + (3.0 * positive if instance == 0 else 0.0)
            rows.append(f"{'yes' if positive else 'no'},bag{bag}," + ",".join(f"{value:.4f}" for value in values))
    (folder / "table.csv").write_text("\n".join(rows))
    made = fedpath("cohort", "from-table", folder / "table.csv", "--out", folder, "--sites", "A,B")
    assert made.code == 0, made.err
    assert made.out.splitlines() == [
        f"{folder}/{site}: 20 bags (10 × no, 10 × yes), 80 instances of width 4" for site in "AB"
    ]
    (folder / "federation.toml").write_text(FEDERATION)
    for site in "AB":
        (folder / site / "site.toml").write_text(SITE.format(name=site))
    return folder


def test_trains_pooled_data_and_writes_models_and_metrics(hospitals: Path, tmp_path: Path) -> None:
    sites = [part for site in "AB" for part in ("--site", hospitals / site / "site.toml")]
    run = fedpath("train", "--config", hospitals / "federation.toml", *sites, "--out", tmp_path)
    assert run.code == 0, run.err
    assert "test AUC" in run.out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["sites"] == ["A", "B"]
    assert [entry["epoch"] for entry in metrics["history"]] == [2, 4, 6]
    assert metrics["test"]["patients"] == 8
    assert metrics["test"]["auc_interval"]["value"] == pytest.approx(metrics["test"]["auc"])

    model, metadata = load_model(tmp_path / "best.safetensors")
    assert metadata["trained_on"] == "A,B"
    assert json.loads(metadata["labels"]) == ["no", "yes"]
    assert metadata["epoch"] == str(metrics["best_epoch"])
    test = []
    for site in "AB":
        cohort = load_cohort(hospitals / site / "manifest.csv", labels=["no", "yes"])
        test += load_examples(cohort, hospitals / site / "features", "test", width=4)
    assert evaluate(model, test).auc == metrics["test"]["auc"]


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
