"""Cross-validation as a command: a folder a fold, folds that are finished kept, one summary of all."""

import json
from pathlib import Path
from typing import Any

from fedpath.cli.train.once import INTERVAL, METRICS, PREDICTIONS, Job, assess, figures_in, settings_of, train_once
from fedpath.cli.train.predictions import Prediction, read_predictions, write_predictions
from fedpath.cli.train.progress import TrainingProgress
from fedpath.cli.train.words import TITLES, draw, summary_lines
from fedpath.core.cohort import Example
from fedpath.core.errors import ConfigError
from fedpath.core.files import write_json
from fedpath.core.training.cross_validation import Fold, make_folds, spread
from fedpath.core.training.metrics import averaging


def cross_validate(
    job: Job, examples: list[Example], folds: int, validation_share: float, progress: TrainingProgress
) -> tuple[list[str], dict[str, Any]]:
    """Train every fold that is not finished, and write the summary; return it in words and as it is written.

    Args:
        job: what the folds share.
        examples: of all splits.
        folds: how many.
        validation_share: of the patients that a fold does not test.
        progress: shows how far it is.

    Raises:
        ConfigError: a folder holds a fold that was made otherwise; nothing is trained then.
        DataError: a class has too few patients.
    """
    labels = job.federation.task.labels
    # One order, whatever split the manifest gave a slide.
    examples = sorted(examples, key=lambda example: (example.patient_id, example.slide_id))
    made = make_folds(examples, labels, folds=folds, validation_share=validation_share, seed=job.seed)
    settings = {
        fold.number: settings_of(
            job, fold.examples, {"number": fold.number, "of": folds, "validation_share": validation_share}
        )
        for fold in made
    }
    reports = {fold.number: _finished(job, fold, settings[fold.number]) for fold in made}
    missing = sum(report is None for report in reports.values())
    finished: dict[int, dict[str, Any]] = {}
    predictions: list[Prediction] = []
    with progress.of(missing):
        for fold in made:
            folder = _folder(job, fold)
            report = reports[fold.number]
            if report is not None:
                tested = read_predictions(folder / PREDICTIONS, labels)
                progress.say(_line(fold, folds, report) + " (finished before)")
            else:
                progress.begin(f", fold {fold.number} of {folds}")
                report, tested = train_once(
                    job, fold.examples, folder, progress, settings=settings[fold.number], fold=fold.number
                )
                progress.end(_line(fold, folds, report))
            finished[fold.number] = report
            predictions += tested
    write_predictions(job.out / PREDICTIONS, predictions, labels)
    summary = _summary(job, list(finished.values()), predictions)
    write_json(job.out / "summary.json", summary)
    pictures = draw(job.out, list(finished.values()), summary["pooled"], predictions)
    where = f"summary.json, predictions.csv and the folds are in {job.out}"
    return [*summary_lines(summary), where, pictures], summary


def _folder(job: Job, fold: Fold) -> Path:
    return job.out / f"fold-{fold.number}"


def _finished(job: Job, fold: Fold, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return what a finished fold's metrics.json says; None where the fold is still to be trained.

    Raises:
        ConfigError: it was made with other settings, or is no such file.
    """
    folder = _folder(job, fold)
    if not all((folder / name).exists() for name in (METRICS, PREDICTIONS, "best.safetensors")):
        return None
    try:
        report: dict[str, Any] = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        before = report["settings"]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{folder / METRICS}: not as it was written", remedy="remove that folder") from None
    changed = _differences(before, settings)
    if changed:
        more = f"; {len(changed) - 1} more" if len(changed) > 1 else ""
        raise ConfigError(
            f"{folder} is a finished fold made with other settings: {changed[0]}{more}",
            remedy="give another --out, or remove its folds to train them again",
        )
    return report


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Return in words where two settings differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*before, *now])
        return [
            text
            for key in keys
            for text in _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
        ]
    if before == now:
        return []
    if name == "examples_sha256":
        return ["its slides, labels, splits, features or clinical data were others"]
    return [f"{name} was {json.dumps(before)}, now {json.dumps(now)}"]


def _line(fold: Fold, folds: int, report: dict[str, Any]) -> str:
    test = figures_in(report["test"])
    figures = f", test {TITLES['auc']} {test['auc']['value']:.3f}" if "auc" in test else ""
    early = "" if report["epochs"] == report["planned_epochs"] else f", ended after {report['epochs']}"
    best = f"best epoch {report['best_epoch']} of {report['planned_epochs']}"
    return f"fold {fold.number} of {folds}: {best}{early}{figures}"


def _summary(job: Job, reports: list[dict[str, Any]], predictions: list[Prediction]) -> dict[str, Any]:
    """Return what summary.json says."""
    over_folds: dict[str, Any] = {}
    for name in averaging(len(job.federation.task.labels)):
        values = [report["test"][name] and report["test"][name]["value"] for report in reports]
        over_folds[name] = None
        if None not in values:
            mean, sd = spread(values)
            over_folds[name] = {"mean": mean, "sd": sd, "values": values}
    return {
        "sites": list(job.sites),
        "folds": len(reports),
        "seed": job.seed,
        "over_folds": over_folds,
        "pooled": assess(predictions, job.federation.federation.seed),
        "averaging": averaging(len(job.federation.task.labels)),
        "interval": INTERVAL,
        "meaning": {
            "over_folds": "each fold's model on its test patients; mean and sample standard deviation over the folds",
            "pooled": "the test predictions of all folds together, each patient's by the model trained without it",
        },
    }
