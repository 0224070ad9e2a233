"""``summary``: the page's figures as plain JSON. Keys are stable; ``SUMMARY_VERSION`` counts breaking changes."""

import math
from typing import Any

from fedpath.core.report.data import Interval, ReportData, Splits
from fedpath.core.report.wording import verdict

SUMMARY_VERSION = 1


def summary(data: ReportData) -> dict[str, Any]:
    """Return everything the page says, with full precision; what is unknown or not finite is None, never NaN.

    Shape (``<x>`` stands for a name)::

        version, headline, notes
        federation.{name, seed, rounds, labels, model, parameters, encoder, encoder_sha256, feature_width, mpp,
            patch_px, model_sha256, settings, versions, finished}
        hospitals.<site>.{slides, positives, patients: {train, validation, test}, mpp_level0, patches, note}
        models.<name>.{kind, site, test_auc: {value, low, high} | None, test_slides, per_hospital.<site>: AUC | None}
        mean_of_local, pooled, federated, federated_minus_mean_of_local, pooled_minus_federated
        best_round
        rounds[].{round, validation_auc, asked, answered, refused: [{site, reason}], late: [{site, reason}], patients,
            seconds, sites.<site>.{validation_auc, validation_loss, training_loss, patients, seconds, bytes_sent,
            bytes_received}}
        what_left.<site>.{bytes, messages: [{kind, count, bytes, content}], audit: {entries, intact, head}}
        heatmaps[].{site, slide_id, label, probability}
        durations_s.<what>, files.<what>
    """
    federation = data.federation
    values = {model.name: model.test_auc.value for model in data.models if model.test_auc is not None}
    federated = values.get(data.federated.name) if data.federated else None
    pooled = values.get(data.pooled.name) if data.pooled else None
    result = {
        "version": SUMMARY_VERSION,
        "headline": " ".join(verdict(data)),
        "notes": list(data.notes),
        "federation": {
            "name": federation.name,
            "seed": federation.seed,
            "rounds": federation.rounds,
            "labels": list(federation.labels),
            "model": federation.model,
            "parameters": federation.parameters,
            "encoder": federation.encoder,
            "encoder_sha256": federation.encoder_sha256,
            "feature_width": federation.feature_width,
            "mpp": federation.mpp,
            "patch_px": federation.patch_px,
            "model_sha256": federation.model_sha256,
            "settings": dict(federation.settings),
            "versions": dict(federation.versions),
            "finished": federation.finished,
        },
        "hospitals": {
            hospital.name: {
                "slides": _splits(hospital.slides),
                "positives": _splits(hospital.positives),
                "patients": _splits(hospital.patients),
                "mpp_level0": hospital.mpp_level0,
                "patches": hospital.patches,
                "note": hospital.note,
            }
            for hospital in data.hospitals
        },
        "models": {
            model.name: {
                "kind": model.kind,
                "site": model.site,
                "test_auc": _interval(model.test_auc),
                "test_slides": len(model.predictions),
                "per_hospital": {
                    site: None if (there := model.auc_at(site)) is None else there.value for site in data.sites
                },
            }
            for model in data.models
        },
        "federated": federated,
        "mean_of_local": data.mean_of_local,
        "pooled": pooled,
        "federated_minus_mean_of_local": _difference(federated, data.mean_of_local),
        "pooled_minus_federated": _difference(pooled, federated),
        "best_round": data.best_round,
        "rounds": [
            {
                "round": round_.number,
                "validation_auc": round_.validation_auc,
                "asked": list(round_.asked),
                "answered": list(round_.answered),
                "refused": [{"site": refusal.site, "reason": refusal.reason} for refusal in round_.refused],
                "late": [{"site": late.site, "reason": late.reason} for late in round_.late],
                "patients": round_.patients,
                "seconds": round_.seconds,
                "sites": {
                    entry.site: {
                        "validation_auc": entry.validation_auc,
                        "validation_loss": entry.validation_loss,
                        "training_loss": entry.training_loss,
                        "patients": entry.patients,
                        "seconds": entry.seconds,
                        "bytes_sent": entry.bytes_sent,
                        "bytes_received": entry.bytes_received,
                    }
                    for entry in round_.sites
                },
            }
            for round_ in data.rounds
        ],
        "what_left": {
            departure.site: {
                "bytes": departure.bytes,
                "messages": [
                    {"kind": kind.kind, "count": kind.count, "bytes": kind.bytes, "content": kind.content}
                    for kind in departure.kinds
                ],
                "audit": {"entries": departure.entries, "intact": departure.intact, "head": departure.head},
            }
            for departure in data.departures
        },
        "heatmaps": [
            {"site": h.site, "slide_id": h.slide_id, "label": h.label, "probability": h.probability}
            for h in data.heatmaps
        ],
        "durations_s": dict(data.durations),
        "files": {entry.what: entry.path for entry in data.files},
    }
    cleaned: dict[str, Any] = _without_nan(result)
    return cleaned


def _splits(splits: Splits) -> dict[str, int]:
    return {"train": splits.train, "validation": splits.validation, "test": splits.test}


def _interval(interval: Interval | None) -> dict[str, float | None] | None:
    return None if interval is None else {"value": interval.value, "low": interval.low, "high": interval.high}


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity: None says as much."""
    match value:
        case dict():
            return {key: _without_nan(item) for key, item in value.items()}
        case list():
            return [_without_nan(item) for item in value]
        case float() if not math.isfinite(value):
            return None
        case _:
            return value
