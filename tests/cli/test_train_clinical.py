"""`fedpath train` with a model of clinical data, at a hospital with a table that has holes and at one without."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Run, fedpath
from hospitals import CLINICAL_FEDERATION, CLINICAL_SITE, FEDERATION, FIELDS

from fedpath.cli.train.predictions import Prediction, read_predictions, write_predictions
from fedpath.core.config import load_federation, load_site
from fedpath.core.errors import DataError
from fedpath.core.models import load_model
from fedpath.core.training import auc, examine, predict
from fedpath.core.training.data import load_site_examples


def train(hospitals: Path, out: Path, *more: str, config: Path | None = None, sites: str = "AB") -> Run:
    chosen = [part for site in sites for part in ("--site", hospitals / site / "site.toml")]
    return fedpath("train", "--config", config or hospitals / "federation.toml", *chosen, "--out", out, *more)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def metrics_of(folder: Path) -> Any:
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture
def copied(clinical_hospitals: Path, tmp_path: Path) -> Path:
    """The hospitals, to change."""
    return Path(shutil.copytree(clinical_hospitals, tmp_path / "hospitals"))


@pytest.fixture(scope="module")
def pooled(clinical_hospitals: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    out = tmp_path_factory.mktemp("pooled") / "out"
    run = train(clinical_hospitals, out)
    assert run.code == 0, run.err
    return out, run


def test_patients_go_by_the_branch_that_fits_and_the_files_say_which(
    clinical_hospitals: Path, pooled: tuple[Path, Run]
) -> None:
    out, run = pooled
    assert "clinical data: A 16 of 20, B 0 of 20 patients" in run.out
    federation = load_federation(clinical_hospitals / "federation.toml")
    test = {
        (site, example.slide_id): example
        for site in "AB"
        for example in load_site_examples(load_site(clinical_hospitals / site / "site.toml"), federation)["test"]
    }
    rows = rows_of(out / "predictions.csv")
    assert list(rows[0])[4:6] == ["label", "branch"]
    assert [(row["site"], row["slide_id"]) for row in rows] == list(test)
    for row in rows:
        has = test[row["site"], row["slide_id"]].bag.clinical is not None
        assert row["branch"] == ("multi-modal" if has else "single-modal")
    branches = metrics_of(out)["test"]["branches"]
    for branch in ("single-modal", "multi-modal"):
        part = [row for row in rows if row["branch"] == branch]
        assert branches[branch]["patients"] == branches[branch]["slides"] == len(part) > 0
        value = auc([row["label"] == "yes" for row in part], [float(row["probability_yes"]) for row in part])
        assert (branches[branch]["auc"] and branches[branch]["auc"]["value"]) == value
        assert f"{branch} branch: {len(part)} of 8 test patients" in run.out
    # The file alone predicts the same bits.
    model, metadata = load_model(out / "best.safetensors")
    assert list(json.loads(metadata["clinical"])["fields"]) == ["age", "grade"]
    probabilities_BC = predict(model, [example.bag for example in test.values()])
    assert [float(row["probability_yes"]) for row in rows] == probabilities_BC[:, 1].tolist()


def test_the_standard_is_that_of_the_training_patients(clinical_hospitals: Path, pooled: tuple[Path, Run]) -> None:
    out, _ = pooled
    site = load_site(clinical_hospitals / "A" / "site.toml")
    training = load_site_examples(site, load_federation(clinical_hospitals / "federation.toml"))["train"]
    ages = [
        record.values_F[0].item()
        for example in training
        if (record := example.bag.clinical) is not None and record.present_F[0]
    ]
    standard = metrics_of(out)["clinical_standard"]
    assert standard["patients"] == sum(example.bag.clinical is not None for example in training)
    assert standard["mean"] == {"age": pytest.approx(sum(ages) / len(ages))}
    state = load_model(out / "last.safetensors")[0].state_dict()
    assert state["coder.mean_F"][0] == torch.tensor(standard["mean"]["age"], dtype=torch.float32)


def test_a_hospital_without_a_table_trains_the_single_modal_branch(clinical_hospitals: Path, tmp_path: Path) -> None:
    run = train(clinical_hospitals, tmp_path, sites="B")
    assert run.code == 0, run.err
    assert "no training patient has clinical data: the model is trained without it" in run.out
    report = metrics_of(tmp_path)
    assert report["clinical_standard"]["patients"] == 0
    assert report["test"]["branches"]["multi-modal"] is None
    assert report["test"]["branches"]["single-modal"]["auc"] == report["test"]["auc"]
    assert "multi-modal branch: 0 of 4 test patients" in run.out
    assert {row["branch"] for row in rows_of(tmp_path / "predictions.csv")} == {"single-modal"}


def test_below_the_policys_minimum_clinical_data_is_not_read(copied: Path, tmp_path: Path) -> None:
    site = copied / "A" / "site.toml"
    site.write_text(site.read_text() + "[policy]\nmin_patients = 12\n")
    run = train(copied, tmp_path / "out", sites="A")
    assert run.code == 0, run.err
    assert metrics_of(tmp_path / "out")["clinical_standard"]["patients"] == 0
    assert (
        "fewer training patients than policy.min_patients have clinical data: the model is trained without it"
        in run.out
    )


def test_a_number_that_too_few_have_is_not_read_and_named(copied: Path, tmp_path: Path) -> None:
    site, table = copied / "A" / "site.toml", copied / "A" / "clinical.csv"
    site.write_text(site.read_text() + "[policy]\nmin_patients = 2\n")
    header, *rows = table.read_text().splitlines()
    patients = [row.split(",")[0] for row in rows]
    table.write_text("\n".join([header, *(f"{patient},,G{place % 3 + 1}" for place, patient in enumerate(patients))]))
    run = train(copied, tmp_path / "out", sites="A")
    assert run.code == 0, run.err
    assert run.out.count("clinical fields that too few training patients have are not read: age\n") == 1
    standard = metrics_of(tmp_path / "out")["clinical_standard"]
    assert standard["mean"] == {}
    assert standard["patients"] > 2
    assert (metrics_of(tmp_path / "out")["test"]["branches"]["multi-modal"] or {"patients": 0})["patients"] > 0


@pytest.fixture(scope="module")
def folds(clinical_hospitals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("folds") / "out"
    run = train(clinical_hospitals, out, "--folds", "2", sites="A")
    assert run.code == 0, run.err
    summary = json.loads((out / "summary.json").read_text())
    counts = {branch: part["patients"] for branch, part in summary["pooled"]["branches"].items()}
    assert counts == {"single-modal": 4, "multi-modal": 16}
    assert "multi-modal branch: 16 of 20 test patients, AUC " in run.out
    return out


def test_finished_folds_are_read_again_with_their_branches(clinical_hospitals: Path, folds: Path) -> None:
    before = (folds / "predictions.csv").read_bytes()
    (folds / "predictions.csv").unlink()
    run = train(clinical_hospitals, folds, "--folds", "2", sites="A")
    assert run.code == 0, run.err
    assert run.out.count("(finished before)") == 2
    assert (folds / "predictions.csv").read_bytes() == before
    assert {row["branch"] for row in rows_of(folds / "predictions.csv")} == {"single-modal", "multi-modal"}


def test_tested_patients_clinical_data_changes_nothing_that_is_trained(
    folds: Path, copied: Path, tmp_path: Path
) -> None:
    for row in rows_of(folds / "fold-1" / "predictions.csv"):
        if row["branch"] == "multi-modal":
            _change(copied / "A" / "clinical.csv", row["patient_id"])
    run = train(copied, tmp_path / "out", "--folds", "2", sites="A")
    assert run.code == 0, run.err
    names = ("best.safetensors", "last.safetensors")
    for name in names:
        assert (tmp_path / "out" / "fold-1" / name).read_bytes() == (folds / "fold-1" / name).read_bytes()
    assert (tmp_path / "out" / "fold-2" / names[1]).read_bytes() != (folds / "fold-2" / names[1]).read_bytes()
    one, other = (metrics_of(folder / "fold-1") for folder in (folds, tmp_path / "out"))
    assert one["clinical_standard"] == other["clinical_standard"]
    assert one["history"] == other["history"]
    assert one["test"] != other["test"]


def _change(table: Path, patient: str) -> None:
    """Give a patient another age and grade."""
    rows = table.read_text().splitlines()
    changed = [f"{patient},109,G2" if row.startswith(f"{patient},") else row for row in rows]
    assert changed != rows
    table.write_text("\n".join(changed) + "\n")


def test_a_changed_table_is_another_training(folds: Path, copied: Path) -> None:
    out = copied / "out"
    shutil.copytree(folds, out)
    _change(copied / "A" / "clinical.csv", "bag13")
    run = train(copied, out, "--folds", "2", sites="A")
    run.assert_error(2, "is a finished fold made with other settings: its slides, labels, splits, features or clinical")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("maximum = 110", "maximum = 111", "clinical.fields.age.maximum was 110.0, now 111.0"),
        ("hidden = 8", "hidden = 9", "model.options.hidden was 8, now 9"),
    ],
)
def test_another_schema_is_another_setting(
    clinical_hospitals: Path, folds: Path, tmp_path: Path, old: str, new: str, words: str
) -> None:
    config = tmp_path / "federation.toml"
    config.write_text(CLINICAL_FEDERATION.replace(old, new))
    run = train(clinical_hospitals, folds, "--folds", "2", sites="A", config=config)
    run.assert_error(2, f"is a finished fold made with other settings: {words}")


def test_a_schema_that_no_model_uses_says_so_once_and_changes_nothing(copied: Path, tmp_path: Path) -> None:
    for name, text in (("plain", FEDERATION), ("declared", FEDERATION + FIELDS)):
        (tmp_path / f"{name}.toml").write_text(text)
        (copied / "A" / "clinical.csv").unlink(missing_ok=True)  # nobody looks
        run = train(copied, tmp_path / name, config=tmp_path / f"{name}.toml")
        assert run.code == 0, run.err
        assert run.out.count("clinical data is not read: model 'acmil' does not use it") == (name == "declared")
        assert "branch" not in run.out
    for file in ("best.safetensors", "last.safetensors", "metrics.json", "predictions.csv"):
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "declared" / file).read_bytes()
    assert "branch" not in rows_of(tmp_path / "plain" / "predictions.csv")[0]


def test_a_model_of_clinical_data_without_a_schema_is_an_error_before_anything_is_read(tmp_path: Path) -> None:
    config, site = tmp_path / "federation.toml", tmp_path / "site.toml"
    config.write_text(CLINICAL_FEDERATION.removesuffix(FIELDS))
    site.write_text('[site]\nname = "A"\n[data]\nmanifest = "none.csv"\nfeatures = "none"\n' + CLINICAL_SITE)
    run = fedpath("train", "--config", config, "--site", site, "--out", tmp_path / "out")
    run.assert_error(2, "model 'bd' reads clinical data", "[clinical.fields.")
    assert not (tmp_path / "out").exists()


def test_a_fault_of_the_table_is_one_line_and_a_remedy(copied: Path, tmp_path: Path) -> None:
    (copied / "A" / "clinical.csv").write_text("patient_id,Age,Grade\nsomebody,61,G1\n")
    train(copied, tmp_path / "out").assert_error(3, "clinical.csv: no patient in common with the manifest")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model", ["clinical-only", "ensemble", "fill-zero", "fill-mean", "fill-autoencoder"])
def test_what_it_is_compared_with_trains_in_the_same_way(clinical_hospitals: Path, tmp_path: Path, model: str) -> None:
    config = tmp_path / "federation.toml"
    options = "options = { encoder_options = { inner = 8, attention = 8 }, hidden = 8, prompt = 8 }\n"
    config.write_text(CLINICAL_FEDERATION.replace(options, "").replace('"bd"', f'"{model}"'))
    run = train(clinical_hospitals, tmp_path / "out", config=config)
    assert run.code == 0, run.err
    loaded, _ = load_model(tmp_path / "out" / "best.safetensors")
    site = load_site(clinical_hospitals / "A" / "site.toml")
    test = load_site_examples(site, load_federation(config))["test"]
    rows = [row for row in rows_of(tmp_path / "out" / "predictions.csv") if row["site"] == "A"]
    said = examine(loaded, test)
    assert [float(row["probability_yes"]) for row in rows] == said.probabilities_BC[:, 1].tolist()
    assert [row.get("branch") for row in rows] == list(said.routes)


# --- predictions.csv --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", [None, "single-modal", "multi-modal"])
def test_predictions_come_back_with_a_branch_or_without(tmp_path: Path, route: Any) -> None:
    path, labels = tmp_path / "predictions.csv", ["no", "yes"]
    written = [
        Prediction("A", "p,1", "s1", 1, 1, (0.1, 0.9), route),
        Prediction("B", "p2", "s2", 2, 0, (1.0, 0.0), route),
    ]
    write_predictions(path, written, labels)
    assert read_predictions(path, labels) == written
    assert ("branch" in path.read_text()) == (route is not None)


@pytest.mark.parametrize(
    ("old", "new"),
    [("multi-modal", "other"), ("multi-modal,", ""), (",branch", ""), ("0.9", "x"), ("0.9", ""), (",0.9", "")],
)
def test_changed_predictions_are_named(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "predictions.csv"
    write_predictions(path, [Prediction("A", "p1", "s1", 1, 1, (0.1, 0.9), "multi-modal")], ["no", "yes"])
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match="not as it was written"):
        read_predictions(path, ["no", "yes"])
