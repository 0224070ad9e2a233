"""Which run `fedpath server start` serves: the one that is not finished, or a new one."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedpath.core.config import FederationConfig
from fedpath.core.errors import ConfigError, DataError
from fedpath.core.files import write_json
from fedpath.server.folder import FORMAT, RUN_FILE, SUMMARY_FILE, begun, settings_of_run
from fedpath.server.kept import REMEDY, read_kept
from fedpath.server.registry.record import read_record

RUNS_FOLDER = "runs"
_FREE = ("server.", "deadline.")
"""The tables of federation.toml that may change while a run goes on: where the coordinator listens and how long it
waits for how many sites decide nothing about what a site does."""


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run to serve."""

    name: str
    folder: Path
    begun: bool
    """Some of it is done already."""


def open_run(config: FederationConfig, state: Path, *, new: bool) -> OpenRun:
    """Return the run that is not finished, or a new one where there is none.

    Args:
        config: federation.toml.
        state: the coordinator's folder.
        new: begin a new one in any case.

    Raises:
        ConfigError: federation.toml is not that of the run that is not finished, or the folder cannot be written to.
        DataError: the run that is not finished was written by a newer version of fedpath, or is a copy of another one.
    """
    unfinished = None if new else _unfinished(state)
    if unfinished is None:
        return _new_run(config, state)
    kept = _kept(unfinished)
    is_begun = any(any(unfinished.rglob(name)) for name in ("rounds/*.json", "updates/*/*", "encoded.json"))
    changed = _changes(kept, config)
    if not changed:
        return OpenRun(unfinished.name, unfinished, is_begun)
    if not is_begun:  # nothing is lost
        return _new_run(config, state)
    if (of := _federation_of(kept)) != config.federation.name:
        raise ConfigError(
            f"{state}: run {unfinished.name} is of federation '{of}', federation.toml of '{config.federation.name}'",
            remedy="name the folder of this federation with --dir, or a new one",
        )
    raise ConfigError(
        f"run {unfinished.name} is not finished, and federation.toml has changed since it began: {'; '.join(changed)}",
        remedy="put these keys back to go on with it, or begin a new run with --new",
    )


def _unfinished(state: Path) -> Path | None:
    """Return the folder of the latest run, unless that is finished. Those in the queue are `fedpath server serve`'s."""
    runs = [path for path in (state / RUNS_FOLDER).glob("*") if (path / RUN_FILE).is_file() and not _is_queued(path)]
    latest = max(runs, key=_when, default=None)
    return None if latest is None or (latest / SUMMARY_FILE).is_file() else latest


def _is_queued(folder: Path) -> bool:
    record = read_record(folder)
    return record is not None and record.state == "queued"


def _when(path: Path) -> tuple[str, int]:
    """Return when a run began, by its name: date, time, and a number where several began in the same second."""
    date, time, attempt = (*path.name.split("-"), "", "1")[:3]
    return f"{date}-{time}", int(attempt) if attempt.isdigit() else 1


def _kept(folder: Path) -> dict[str, Any]:
    """Return the settings of a run.

    Raises:
        DataError: they cannot be read, or are not of this run or not of this version.
    """
    path = folder / RUN_FILE
    kept: Any = read_kept(path, json.loads)
    if not isinstance(kept, dict) or not isinstance(kept.get("config"), dict):
        raise DataError(f"{path}: cannot be read: it holds no settings", remedy=REMEDY)
    if kept.get("format", FORMAT) != FORMAT:
        raise DataError(
            f"{path}: the run was begun by another version of fedpath (format {kept['format']}, here {FORMAT})",
            remedy="go on with it with that version, or begin a new run with --new",
        )
    if kept.get("run") != folder.name:
        raise DataError(
            f"{path}: the folder holds run {kept.get('run')}", remedy="give it that name again, or begin one with --new"
        )
    return kept


def _federation_of(kept: dict[str, Any]) -> str:
    federation = kept["config"].get("federation")
    return str(federation.get("name")) if isinstance(federation, dict) else ""


def _changes(kept: dict[str, Any], config: FederationConfig) -> list[str]:
    """Say which keys of federation.toml are not those that the run began with."""
    try:
        began = settings_of_run(FederationConfig.model_validate_json(json.dumps(kept["config"])))
    except (ValidationError, ValueError):
        return ["it began with another version of fedpath"]
    before, now = dict(flat(began)), dict(flat(settings_of_run(config)))
    return [
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in [*before, *(key for key in now if key not in before)]
        if before.get(key) != now.get(key) and not key.startswith(_FREE)
    ]


def flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Return the keys of nested tables with their values, written as in the file; stages are counted from 1."""
    match value:
        case dict():
            for name, inner in value.items():
                yield from flat(inner, f"{key}.{name}" if key else name)
        case [dict(), *_]:
            for place, inner in enumerate(value, 1):
                yield from flat(inner, f"{key} {place}")
        case _:
            yield key, value


def _new_run(config: FederationConfig, state: Path) -> OpenRun:
    """Make the folder of a new run, named by the time it starts."""
    base = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    for attempt in range(1, 100):
        run = base if attempt == 1 else f"{base}-{attempt}"
        folder = state / RUNS_FOLDER / run
        try:
            folder.mkdir(parents=True)
            write_json(folder / RUN_FILE, begun(run, config))
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(
                f"{state}: cannot be written to: {error.strerror}", remedy="name another folder with --dir"
            ) from None
        return OpenRun(run, folder, begun=False)
    raise ConfigError(f"{state}: too many runs started at {base}", remedy="wait a second")
