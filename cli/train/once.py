"""One training: its settings, its files, its figures."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedpath.cli.train.data import site_and_patient
from fedpath.cli.train.predictions import ROUTES, Prediction, arrays, predictions_of, write_predictions
from fedpath.cli.train.progress import TrainingProgress
from fedpath.cli.train.trackers import Tracking, track, track_figures
from fedpath.core.clinical.standard import Standard
from fedpath.core.cohort import Example, Split
from fedpath.core.config import FederationConfig
from fedpath.core.config.clinical import ClinicalSchema
from fedpath.core.files import write_json
from fedpath.core.models.checkpoint import model_metadata, save_model
from fedpath.core.models.registry import fields_read
from fedpath.core.training import Validated, bootstrap, examine, learning_rate_at, train_alone
from fedpath.core.training.alone import initial_model
from fedpath.core.training.cross_validation import fingerprint
from fedpath.core.training.metrics import averaging
from fedpath.core.training.precision import Chosen
from fedpath.core.training.standard import standard_of

METRICS, PREDICTIONS = "metrics.json", "predictions.csv"
INTERVAL = "95 % percentile interval, 2000 resamplings of the patients"


@dataclass(frozen=True, slots=True)
class Job:
    """What every training of one command shares."""

    federation: FederationConfig
    sites: tuple[str, ...]
    out: Path
    seed: int
    device: str
    precision: Chosen
    tracking: Tracking
    min_patients: Mapping[str, int]
    """Of each site's policy."""

    @property
    def epochs(self) -> int:
        """Planned for each training."""
        return self.federation.training.rounds * self.federation.training.local_epochs

    @property
    def clinical(self) -> ClinicalSchema | None:
        """The clinical fields that the model reads."""
        return fields_read(self.federation.model.name, self.federation.clinical)

    def standard(self, examples_train: Sequence[Example]) -> Standard | None:
        """Return how clinical data is read: what the sites agree on by these patients, each by its own policy."""
        if self.clinical is None:
            return None
        by_site: dict[str, list[Example]] = {site: [] for site in self.sites}
        for example in examples_train:
            by_site[site_and_patient(example)[0]].append(example)
        return standard_of(self.clinical, [(part, self.min_patients[site]) for site, part in by_site.items()])


def settings_of(job: Job, examples: dict[Split, list[Example]], fold: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return all that decides the result of a training, as metrics.json keeps it."""
    federation = job.federation
    settings = {
        "fedpath": version("fedpath"),
        "torch": version("torch"),
        "sites": list(job.sites),
        "labels": federation.task.labels,
        "features": federation.features.model_dump(),
        "model": federation.model.model_dump(),
        "training": federation.training.model_dump(),
        "initial_seed": federation.federation.seed,
        "seed": job.seed,
        "device": job.device,
        "precision": job.precision,
        "clinical": None
        if job.clinical is None
        else {
            "fields": job.clinical.model_dump()["fields"],
            "order": list(job.clinical.fields),
            "min_patients": dict(job.min_patients),
        },
        "fold": fold,
        "examples_sha256": fingerprint(examples),
    }
    decoded: dict[str, Any] = json.loads(json.dumps(settings))
    return decoded


def train_once(
    job: Job,
    examples: dict[Split, list[Example]],
    folder: Path,
    progress: TrainingProgress,
    *,
    settings: dict[str, Any],
    fold: int | None = None,
) -> tuple[dict[str, Any], list[Prediction]]:
    """Train, test the best model once, and write the folder; return what metrics.json says, and the predictions.

    metrics.json is written last: where it is, the folder is whole.
    """
    federation = job.federation
    standard = job.standard(examples["train"])
    if standard is not None and (unread := _unread(job, standard, examples["train"])):
        progress.say(unread)
    with job.tracking.open(fold) as trackers:

        def validated(result: Validated) -> None:
            rate = learning_rate_at(result.epoch / job.epochs, federation.training.learning_rate)
            track(trackers, result, rate)
            progress.validated(result)

        result = train_alone(
            federation,
            examples["train"],
            examples["validation"],
            seed=job.seed,
            device=job.device,
            precision=job.precision,
            standard=standard,
            progress=progress.bag,
            validated=validated,
        )
        test, predictions = None, []
        if examples["test"]:
            model = initial_model(federation)
            model.load_state_dict(result.best_state)
            examined = examine(model, examples["test"], job.device)
            predictions = predictions_of(examples["test"], examined, fold)
            test = {"loss": examined.metrics.loss} | assess(predictions, federation.federation.seed)
            values = {f"test/{name}": figure["value"] for name, figure in figures_in(test).items()}
            track_figures(trackers, values, result.best_epoch)
    metadata = model_metadata(
        federation.federation.name, federation.model, federation.features, federation.task.labels, job.clinical
    ) | {"trained_on": ",".join(job.sites)}
    save_model(folder / "best.safetensors", result.best_state, metadata | {"epoch": str(result.best_epoch)})
    save_model(folder / "last.safetensors", result.last_state, metadata | {"epoch": str(result.epochs)})
    write_predictions(folder / PREDICTIONS, predictions, federation.task.labels)
    report = {
        "sites": list(job.sites),
        "settings": settings,
        "planned_epochs": job.epochs,
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
        "history": [dataclasses.asdict(entry) for entry in result.history],
        "clinical_standard": None if standard is None else dataclasses.asdict(standard),
        "test": test,
        "averaging": averaging(len(federation.task.labels)),
        "interval": INTERVAL,
    }
    write_json(folder / METRICS, report)
    return report, predictions


def _unread(job: Job, standard: Standard, examples_train: Sequence[Example]) -> str:
    """Say what of the clinical data is not read, and why; nothing where all is."""
    assert job.clinical is not None
    if not standard.patients:
        has_any = any(example.bag.clinical is not None for example in examples_train)
        who = "fewer training patients than policy.min_patients have" if has_any else "no training patient has"
        return f"{who} clinical data: the model is trained without it"
    unread = standard.unread(job.clinical)
    reasons = {
        "that too few training patients have": [name for name in unread if name not in standard.mean],
        "in which all training patients agree": [name for name in unread if name in standard.mean],
    }
    return "; ".join(
        f"clinical fields {why} are not read: {', '.join(names)}" for why, names in reasons.items() if names
    )


def assess(predictions: Sequence[Prediction], seed: int) -> dict[str, Any]:
    """Return slides, patients and every figure with its interval, as metrics.json has them.

    Of a model with branches also ``branches``: the same of the patients that went by each, None where nobody did.
    """
    figures = _assess(predictions, seed)
    if all(one.route is None for one in predictions):
        return figures
    by_route = {route: [one for one in predictions if one.route == route] for route in ROUTES}
    return figures | {"branches": {route: _assess(part, seed) if part else None for route, part in by_route.items()}}


def _assess(predictions: Sequence[Prediction], seed: int) -> dict[str, Any]:
    targets_B, probabilities_BC, patients = arrays(predictions)
    intervals = bootstrap(targets_B, probabilities_BC, patients, seed=seed)
    return {"slides": len(predictions), "patients": len(set(patients))} | {
        name: None if interval is None else dataclasses.asdict(interval) for name, interval in intervals.items()
    }


def figures_in(test: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the figures that are defined among what ``assess`` returned."""
    return {name: test[name] for name in averaging(2) if test[name] is not None}
