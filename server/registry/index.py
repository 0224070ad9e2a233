"""From the folders of runs into the registry: what is there that the registry does not know."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedpath.core.config import FederationConfig
from fedpath.core.config.stages import EncodeStage
from fedpath.core.errors import DataError
from fedpath.core.exchange.messages import Description
from fedpath.server.folder import RUN_FILE, SUMMARY_FILE, settings_of_run
from fedpath.server.kept import REMEDY
from fedpath.server.records import ROUNDS, RoundManifest
from fedpath.server.registry.record import Record, now, read_record, write_record
from fedpath.server.registry.registry import Registry
from fedpath.server.registry.tables import Run, RunState, Site
from fedpath.server.standing import Standing

STAGES = "stages"


def rounds_of(config: FederationConfig) -> int:
    """Return how many rounds a run of ``config`` has, over all its stages."""
    if not config.stage:
        return config.training.rounds
    stages = [stage for stage in config.stage if not isinstance(stage, EncodeStage)]
    return sum(stage.training.over(config.training).rounds for stage in stages)


def model_of(config: FederationConfig) -> str:
    """Return the name of the model that comes out of a run of ``config``."""
    trains = [stage for stage in config.stage if stage.kind == "train" and stage.model is not None]
    return trains[-1].model.name if trains and trains[-1].model is not None else config.model.name


def read_config(folder: Path) -> FederationConfig:
    """Return the settings that a run keeps.

    Raises:
        DataError: they cannot be read, or are of another version of fedpath.
    """
    path = folder / RUN_FILE
    try:
        return FederationConfig.model_validate_json(json.dumps(json.loads(path.read_text())["config"]))
    except ValidationError:
        raise DataError(
            f"{path}: run {folder.name} is of another version of fedpath",
            remedy="run that version, or submit it anew",
        ) from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(f"{path}: cannot be read: {str(error).splitlines()[0]}", remedy=REMEDY) from None


def index_folders(registry: Registry, runs: Path) -> list[str]:
    """Take runs into the registry that it does not know, and the rounds of all that it lacks.

    Args:
        registry: is written to.
        runs: the folder of runs of one coordinator.

    Returns:
        What could not be taken in, in words: files that are damaged.
    """
    troubles = []
    known = {run.run: run for run in registry.runs() if run.folder and Path(run.folder).parent == runs.absolute()}
    for folder in sorted(path.parent for path in runs.glob(f"*/{RUN_FILE}")):
        try:
            run = known.get(folder.name)
            if run is None:
                run = take_in(registry, folder)
            elif _is_whole(registry, run, folder):
                continue
            else:
                reconcile(registry, run, folder)
            Indexer(registry, run, folder).look()
            write_record(run, folder)
        except DataError as error:
            troubles.append(error.message)
    return troubles


def take_in(registry: Registry, folder: Path) -> Run:
    """Return the row of a run, made from its folder where the registry has none.

    Raises:
        DataError: the run's files are damaged.
    """
    run = _found(read_config(folder), folder)
    registry.add(run)
    return registry.get(run.federation, run.run) or run


def _is_whole(registry: Registry, run: Run, folder: Path) -> bool:
    """Return whether a run is over and all that it left is in the registry: most are, and need not be read again."""
    if run.state != "finished":
        return False
    manifests = sum(1 for _ in folder.rglob(f"{ROUNDS}/[0-9]*.json"))
    return manifests == run.done == len(registry.kept_rounds(run))


def reconcile(registry: Registry, run: Run, folder: Path) -> None:
    """Let the later of the two stand, where registry and folder differ on what became of a run.

    The registry is behind where it could not be reached when the run ended, the folder where somebody on another
    machine asked for something.
    """
    record = read_record(folder)
    if record is not None and record.revision >= run.revision and record != Record.of(run):
        registry.change(run, **record.values())


def _found(config: FederationConfig, folder: Path) -> Run:
    """Return the row of a run that only its folder knows."""
    record = read_record(folder)
    if record is None:
        began = datetime.fromtimestamp((folder / RUN_FILE).stat().st_mtime, UTC)
        record = Record(state="stopped", submitted=began, started=began)
    row = new_row(config, folder.name, folder=folder)
    for name, value in record.values().items():
        setattr(row, name, value)
    return row


def new_row(
    config: FederationConfig, name: str, *, folder: Path | None, state: RunState = "queued", **more: Any
) -> Run:
    """Return the row of a run that has just been submitted."""
    values: dict[str, Any] = {
        "federation": config.federation.name,
        "run": name,
        "state": state,
        "submitted": now(),
        "config": settings_of_run(config),
        "folder": None if folder is None else str(folder.absolute()),
        "model": model_of(config),
        "rounds": rounds_of(config),
        "weights": None if config.encoder.weights is None else str(config.encoder.weights),
        "priority": 0,
        "revision": 0,
        "done": 0,
        "doing": "",
        "error": "",
        "remedy": "",
        "refused": {},
    }
    return Run(**values | more)


@dataclass(slots=True)
class Indexer:
    """Follows one run's folder; each `look` writes what is new."""

    registry: Registry
    run: Run
    folder: Path
    _seen: dict[Path, tuple[int, int]] = field(default_factory=dict)
    """Files that were read, with their time and size."""
    _manifests: dict[str, dict[int, RoundManifest]] = field(default_factory=dict)
    """By stage and round."""
    _kept: dict[tuple[str, int], str] | None = None

    def look(self) -> None:
        """Bring the registry up to the folder.

        Raises:
            DataError: a file is damaged.
        """
        if self._kept is None:
            self._kept = self.registry.kept_rounds(self.run)
        values: dict[str, Any] = {}
        for stage, folder in self._stages():
            self._rounds(stage, folder)
            values |= self._members(folder)
        done = sum(map(len, self._manifests.values()))
        values |= {"done": done} | self._best() | self._ending()
        if changed := {name: value for name, value in values.items() if getattr(self.run, name) != value}:
            self.registry.change(self.run, **changed)

    def _stages(self) -> Iterator[tuple[str, Path]]:
        yield "", self.folder
        for folder in sorted((self.folder / STAGES).glob("*/")):
            yield folder.name, folder

    def _rounds(self, stage: str, folder: Path) -> None:
        assert self._kept is not None
        manifests = self._manifests.setdefault(stage, {})
        there = {path: int(path.stem) for path in sorted((folder / ROUNDS).glob("[0-9]*.json"))}
        for path, number in there.items():
            if self._is_new(path):
                manifests[number] = _read_manifest(path)
        for number in manifests.keys() - set(there.values()):  # the model was damaged; the round is done again
            del manifests[number]
        new = [manifests[number] for number in manifests if self._kept.get((stage, number)) != manifests[number].result]
        if new:
            self.registry.keep_rounds(self.run, stage, new)
            self._kept |= {(stage, manifest.round): manifest.result for manifest in new}
        if stale := [key for key in self._kept if key[0] == stage and key[1] not in manifests]:
            self.registry.forget_rounds(self.run, stage, after=min(number for _, number in stale) - 1)
            for key in stale:
                del self._kept[key]

    def _members(self, folder: Path) -> dict[str, Any]:
        """Take in who described themselves; return who was refused."""
        path = folder / RUN_FILE
        if not self._is_new(path):
            return {}
        kept = json.loads(path.read_text())
        sites = {site: Description.model_validate(value) for site, value in (kept.get("sites") or {}).items()}
        if sites:
            described = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            self.registry.keep_sites([_site(self.run.federation, *item, described) for item in sites.items()])
        return {"refused": kept["refused"]} if kept.get("refused") else {}

    def _best(self) -> dict[str, Any]:
        """Return the best model so far, of the latest stage that has rounds."""
        stages = [manifests for _, manifests in sorted(self._manifests.items()) if manifests]
        if not stages:
            return {}
        standing = Standing({})
        for _, manifest in sorted(stages[-1].items()):
            standing.advance(manifest)
        return {"best_round": standing.best.round or None, "best_auc": standing.best.auc}

    def _ending(self) -> dict[str, Any]:
        path = self.folder / SUMMARY_FILE
        if not path.exists():
            return {}
        summary = json.loads(path.read_text())
        ended = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        values = {"best_round": summary["best_round"], "best_auc": summary["validation_auc"], "state": "finished"}
        return values | {"doing": "", "error": "", "remedy": "", "exit_code": 0, "ended": self.run.ended or ended}

    def _is_new(self, path: Path) -> bool:
        """Return whether a file is there that was not read as it is now."""
        try:
            stat = path.stat()
        except FileNotFoundError:
            return False
        mark = (stat.st_mtime_ns, stat.st_size)
        if self._seen.get(path) == mark:
            return False
        self._seen[path] = mark
        return True


def _read_manifest(path: Path) -> RoundManifest:
    try:
        return RoundManifest.model_validate_json(path.read_text())
    except ValueError as error:
        raise DataError(f"{path}: cannot be read: {str(error).splitlines()[0]}", remedy=REMEDY) from None


def _site(federation: str, site: str, description: Description, described: datetime) -> Site:
    return Site(
        federation=federation,
        site=site,
        version=description.version,
        encoder=description.contract.encoder,
        patients=dict(description.patients),
        described=described,
        max_parallel_runs=description.max_parallel_runs,
    )
