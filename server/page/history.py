"""What the page shows of runs that are known: from the registry, and from the files of those whose folder is here."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from fedpath.core.exchange.messages import Metrics
from fedpath.server.folder import CLOSING_FILE, SUMMARY_FILE, Closing
from fedpath.server.kept import read_kept
from fedpath.server.pipeline import ENCODER_FILE
from fedpath.server.registry import Part, Registry, Round, Run
from fedpath.server.registry.index import STAGES
from fedpath.server.registry.tables import Site

MOST_ROUNDS = 500
"""Of a stage; the last ones are shown."""
MOST_RUNS = 200
_FILES = {
    "best.safetensors": "best model",
    "last.safetensors": "last model",
    ENCODER_FILE: "tuned encoder",
    SUMMARY_FILE: "result",
}
"""What can be downloaded, and nothing else: no update, no message, nothing that a hospital said about its patients."""


def list_of_runs(registry: Registry, federation: str) -> list[dict[str, Any]]:
    """Return the runs of a federation, the latest first."""
    places = {run.id: place for place, run in enumerate(registry.queue(federation), 1)}
    return [row(run, places.get(run.id)) for run in reversed(registry.runs(federation)[-MOST_RUNS:])]


def row(run: Run, place: int | None = None) -> dict[str, Any]:
    """Return what a list of runs says of one."""
    names = ("run", "label", "state", "model", "rounds", "done", "best_round", "best_auc", "doing", "error", "remedy")
    times = {name: _seconds(getattr(run, name)) for name in ("submitted", "started", "ended")}
    more = {"priority": run.priority, "after": run.after, "refused": run.refused, "place": place}
    return {name: getattr(run, name) for name in names} | times | more


def sites(registry: Registry, federation: str) -> dict[str, dict[str, Any]]:
    """Return how the hospitals last described themselves."""
    return {name: _site(site) for name, site in registry.sites(federation).items()}


def _site(site: Site) -> dict[str, Any]:
    return {
        "version": site.version,
        "encoder": site.encoder,
        "patients": site.patients,
        "described": _seconds(site.described),
        "parallel": site.max_parallel_runs,
    }


def history(registry: Registry, run: Run) -> dict[str, Any]:
    """Return all that the page shows of one run."""
    known = registry.history(run)
    names = list(dict.fromkeys(round_.stage for round_ in known.rounds)) or [""]
    folder = None if run.folder is None else Path(run.folder)
    stages = [
        {
            "name": name,
            "rounds": _rounds(
                [round_ for round_ in known.rounds if round_.stage == name][-MOST_ROUNDS:],
                [part for part in known.parts if part.stage == name],
            ),
        }
        | _closing(None if folder is None else folder / STAGES / name if name else folder)
        for name in names
    ]
    return row(run) | {
        "stages": stages,
        "traffic": _traffic(known.parts),
        "files": [
            {"name": name, "what": _FILES[path.name], "bytes": path.stat().st_size, "stage": _stage_of(name)}
            for name, path in downloads(run).items()
        ],
    }


def _rounds(rounds: Sequence[Round], parts: Sequence[Part]) -> list[dict[str, Any]]:
    of: dict[int, dict[str, dict[str, Any]]] = {round_.round: {} for round_ in rounds}
    for part in parts:
        if part.round in of:
            of[part.round][part.site] = _part(part)
    return [
        {
            "round": round_.round,
            "seconds": round_.seconds,
            "aggregation_s": round_.aggregation_s,
            "deadline_s": round_.deadline_s,
            "auc": round_.validation_auc,
            "loss": round_.validation_loss,
            "patients": max(round_.patients.values(), default=0),
            "sites": of[round_.round],
        }
        for round_ in rounds
    ]


def _part(part: Part) -> dict[str, Any]:
    names = ("outcome", "reason", "of_round", "weight", "training_loss", "validation_auc", "seconds", "sent_bytes")
    values = {name: getattr(part, name) for name in (*names, "received_bytes")}
    return values | {"patients": max(part.patients.values(), default=0)}


def _closing(folder: Path | None) -> dict[str, Any]:
    """Return what the hospitals said after the last round: of the last model, and of the best one on test patients."""
    kept = None if folder is None else read_kept(folder / CLOSING_FILE, Closing.model_validate_json)
    if kept is None:
        return {"validation": {}, "test": {}}
    return {"validation": _figures(kept.validation), "test": _figures(kept.test or {})}


def _figures(figures: dict[str, Metrics]) -> dict[str, dict[str, Any]]:
    return {site: metrics.model_dump(mode="json") for site, metrics in figures.items()}


def _traffic(parts: Sequence[Part]) -> dict[str, dict[str, int]]:
    """Return the bytes of all rounds, by hospital, as the coordinator counts them."""
    total: dict[str, dict[str, int]] = {}
    for part in parts:
        of = total.setdefault(part.site, {"sent": 0, "received": 0})
        of["sent"] += part.sent_bytes
        of["received"] += part.received_bytes
    return dict(sorted(total.items()))


def downloads(run: Run) -> dict[str, Path]:
    """Return the files of a run that may be downloaded, by the name under which they are asked for."""
    if run.folder is None:
        return {}
    folder = Path(run.folder)
    return {str(path.relative_to(folder)): path for path in _found(folder)}


def _found(folder: Path) -> Iterator[Path]:
    for place in (folder, *sorted((folder / STAGES).glob("*/"))):
        for name in _FILES:
            if (path := place / name).is_file():
                yield path


def _stage_of(name: str) -> str:
    parts = name.split("/")
    return parts[1] if len(parts) > 2 else ""


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
