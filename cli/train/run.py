"""From the options of ``fedpath train`` to its files."""

from pathlib import Path
from typing import Any

import torch
import typer

from fedpath.cli import output
from fedpath.cli.train.data import check_features, pool, site_and_patient
from fedpath.cli.train.folds import cross_validate
from fedpath.cli.train.once import Job, settings_of, train_once
from fedpath.cli.train.progress import TrainingProgress
from fedpath.cli.train.trackers import Tracking
from fedpath.cli.train.words import draw, test_lines
from fedpath.core.cohort import Example, Split
from fedpath.core.config import load_federation, load_site
from fedpath.core.training.alone import initial_model
from fedpath.core.training.device import choose_device
from fedpath.core.training.precision import choose_precision, fast_bfloat16


def run(
    config: Path,
    site: list[Path],
    out: Path,
    *,
    seed: int | None,
    folds: int | None,
    tensorboard: bool,
    mlflow: str | None,
    as_json: bool,
) -> None:
    """Carry out the command; the options are those of ``train_command``."""
    federation = load_federation(config)
    sites = [load_site(path) for path in site]
    names = tuple(one.site.name for one in sites)
    tracking = Tracking(
        out / "tensorboard" if tensorboard else None, mlflow, federation.federation.name, ", ".join(names)
    )
    tracking.check()
    initial_model(federation)  # whatever is wrong with it is said before anything is read
    check_features(federation, sites)
    compute = sites[0].compute
    device = choose_device(compute.device)
    job = Job(
        federation,
        names,
        out,
        seed=federation.federation.seed if seed is None else seed,
        device=device,
        precision=choose_precision(compute.precision, device),
        tracking=tracking,
        min_patients={one.site.name: one.policy.min_patients for one in sites},
    )
    torch.set_num_threads(compute.threads)
    examples = pool(federation, sites)
    said = [f"{', '.join(names)}: {_patients(examples, folds)}; {device}, {job.precision}"]
    if federation.clinical is not None:
        said.append(_clinical(job, examples))
    if job.precision == "bfloat16" and not fast_bfloat16(device):
        output.note("this CPU has no AMX: bfloat16 is slower on it than float32")
    progress = TrainingProgress(", ".join(names), job.epochs, as_json=as_json)
    for line in said:
        progress.say(line)
    lines, report = (
        _once(job, examples, progress)
        if folds is None
        else cross_validate(
            job,
            [example for part in examples.values() for example in part],
            folds,
            sites[0].data.validation_share,
            progress,
        )
    )
    if as_json:
        output.result(folder=out, report=report)
    else:
        typer.echo("\n".join(lines))


def _once(
    job: Job, examples: dict[Split, list[Example]], progress: TrainingProgress
) -> tuple[list[str], dict[str, Any]]:
    """Train once on the splits of the manifests; return what there is to say, and what metrics.json says."""
    with progress.of(1):
        progress.begin("")
        report, predictions = train_once(job, examples, job.out, progress, settings=settings_of(job, examples))
    pictures = draw(job.out, [report], report["test"], predictions)
    lines = test_lines(report["test"]) if report["test"] else []
    if report["epochs"] < report["planned_epochs"]:
        lines.append(
            f"ended after epoch {report['epochs']} of {report['planned_epochs']}: no better model in "
            f"{job.federation.training.patience} validations"
        )
    where = f"best of epoch {report['best_epoch']} and last of epoch {report['epochs']} are in {job.out}"
    return [*lines, where, pictures], report


def _patients(examples: dict[Split, list[Example]], folds: int | None) -> str:
    counts = {split: len({example.patient_id for example in part}) for split, part in examples.items()}
    if folds is not None:
        return f"{sum(counts.values())} patients in {folds} folds, whatever split the manifest gives them"
    return ", ".join(f"{count} {split}" for split, count in counts.items()) + " patients"


def _clinical(job: Job, examples: dict[Split, list[Example]]) -> str:
    """Say whose clinical data the model reads."""
    if job.clinical is None:
        return f"clinical data is not read: model '{job.federation.model.name}' does not use it"
    everyone = [example for part in examples.values() for example in part]
    counts = []
    for site in job.sites:
        here = [example for example in everyone if site_and_patient(example)[0] == site]
        known = {example.patient_id for example in here if example.bag.clinical is not None}
        counts.append(f"{site} {len(known)} of {len({example.patient_id for example in here})}")
    return f"clinical data: {', '.join(counts)} patients"
