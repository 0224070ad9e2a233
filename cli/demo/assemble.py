"""Put the demo's results together: what the report and summary.json show, from the records the processes left."""

import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

from fedpath.cli.demo.compare import Cohorts
from fedpath.cli.demo.plan import Hospital, Plan
from fedpath.client.audit import AUDIT_FILE, verify
from fedpath.core.bags.store import read_meta
from fedpath.core.cohort import SPLITS, Example, Split
from fedpath.core.exchange.messages import Metrics
from fedpath.core.report import data as report
from fedpath.core.training.alone import initial_model
from fedpath.server.records import RoundManifest, read_rounds

_PACKAGES = ("fedpath", "flwr", "torch", "openslide-python")


def assemble(
    plan: Plan,
    run_folder: Path,
    cohorts: Cohorts,
    models: tuple[report.ModelResult, ...],
    heatmaps: tuple[report.Heatmap, ...],
    durations: tuple[tuple[str, float], ...],
) -> report.ReportData:
    """Return everything the report shows."""
    summary = json.loads((run_folder / "summary.json").read_text())
    return report.ReportData(
        federation=_federation(cohorts, summary),
        hospitals=tuple(_hospital(hospital, cohorts.examples[hospital.name]) for hospital in plan.hospitals),
        rounds=_rounds(read_rounds(run_folder), summary),
        best_round=summary["best_round"],
        models=models,
        departures=tuple(_departure(hospital) for hospital in plan.hospitals),
        heatmaps=heatmaps,
        durations=durations,
        files=_files(plan, run_folder),
        notes=(
            "These slides are drawn by a program: they show how a federation runs and say nothing about medicine.",
            "Testing on all hospitals' slides together is possible here only because the demo plays every hospital.",
        ),
    )


def _federation(cohorts: Cohorts, summary: dict[str, Any]) -> report.Federation:
    config = cohorts.config
    training = config.training
    return report.Federation(
        name=config.federation.name,
        seed=config.federation.seed,
        rounds=training.rounds,
        labels=tuple(config.task.labels),
        model=config.model.name,
        parameters=sum(parameter.numel() for parameter in initial_model(config).parameters()),
        encoder=config.features.encoder,
        feature_width=config.features.width,
        mpp=config.features.mpp,
        patch_px=config.features.patch_px,
        model_sha256=summary["best_model"],
        settings=(
            ("local epochs a round", str(training.local_epochs)),
            ("learning rate", f"{training.learning_rate:g}, half-cosine to 0"),
            ("weight decay", f"{training.weight_decay:g}"),
            ("class weighting", "on" if training.class_weights else "off"),
            ("averaging", "mean of the hospitals' models, weighted by training patients"),
        ),
        versions=(("Python", platform.python_version()), *((name, version(name)) for name in _PACKAGES)),
        finished=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _hospital(hospital: Hospital, examples: dict[Split, list[Example]]) -> report.Hospital:
    everything = [example for split in SPLITS for example in examples[split]]
    meta = read_meta(hospital.features / f"{everything[0].slide_id}.h5")
    return report.Hospital(
        name=hospital.name,
        slides=report.Splits(*(len(examples[split]) for split in SPLITS)),
        positives=report.Splits(*(sum(example.target for example in examples[split]) for split in SPLITS)),
        patients=report.Splits(*(len({example.patient_id for example in examples[split]}) for split in SPLITS)),
        mpp_level0=meta.mpp_level0,
        patches=sum(len(example.bag) for example in everything),
    )


def _rounds(manifests: list[RoundManifest], summary: dict[str, Any]) -> tuple[report.Round, ...]:
    """Return the rounds with the validation of the model each *ended* with: the next round's, or the final one."""
    final = {site: Metrics(**figures) for site, figures in summary["last_validation"].items()}
    rounds = []
    for manifest, following in zip(manifests, [*manifests[1:], None], strict=True):
        after = final if following is None else {site: part.validation for site, part in following.sites.items()}
        answered = {site: part for site, part in manifest.sites.items() if part.outcome == "answered"}
        sites = []
        for site, part in answered.items():
            metrics = after.get(site)
            sites.append(
                report.SiteRound(
                    site=site,
                    validation_auc=metrics.auc if metrics else None,
                    validation_loss=metrics.loss if metrics else None,
                    training_loss=part.training_loss,
                    seconds=part.training_s or 0.0,
                    bytes_sent=part.received_bytes,
                    bytes_received=part.sent_bytes,
                    patients=max(part.patients.values(), default=None),
                )
            )
        rounds.append(
            report.Round(
                number=manifest.round,
                sites=tuple(sites),
                validation_auc=summary["last_validation_auc"] if following is None else following.validation_auc,
                asked=tuple(manifest.sites),
                answered=tuple(answered),
                refused=tuple(
                    report.Refusal(site, part.reason)
                    for site, part in manifest.sites.items()
                    if part.outcome == "refused"
                ),
                seconds=manifest.seconds,
                late=tuple(
                    report.Refusal(site, part.reason)
                    for site, part in manifest.sites.items()
                    if part.outcome in ("late", "lost")
                ),
                patients=max(manifest.patients.values(), default=None),
            )
        )
    return tuple(rounds)


def _departure(hospital: Hospital) -> report.Departure:
    """Return what left a hospital, from its own log; reading it checks the chain."""
    records = verify(hospital.state / AUDIT_FILE)
    kinds = []
    for kind, group in groupby(sorted(records, key=lambda record: record.kind), key=lambda record: record.kind):
        of_kind = list(group)
        kinds.append(report.MessageKind(kind, len(of_kind), sum(record.size for record in of_kind), of_kind[-1].holds))
    return report.Departure(hospital.name, tuple(kinds), len(records), True, records[-1].hash)


def _files(plan: Plan, run_folder: Path) -> tuple[report.FileEntry, ...]:
    run = run_folder.relative_to(plan.folder)
    return (
        report.FileEntry("best global model", str(run / "best.safetensors")),
        report.FileEntry("last global model", str(run / "last.safetensors")),
        report.FileEntry("manifest of each round", str(run / "rounds")),
        report.FileEntry("federation's configuration", plan.federation.name),
        report.FileEntry("hospitals: slides, features, log of what left", "hospitals"),
        report.FileEntry("what each process printed", "logs"),
    )
