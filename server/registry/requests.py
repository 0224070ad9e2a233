"""What people ask of the queue: submit, stop, resume. The coordinator notices within a second."""

import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedpath.core.config import FederationConfig
from fedpath.core.errors import ConfigError
from fedpath.core.files import write_json
from fedpath.server.folder import RUN_FILE, settings_of_run
from fedpath.server.registry.index import new_row
from fedpath.server.registry.record import now, write_record
from fedpath.server.registry.registry import Registry
from fedpath.server.registry.tables import Coordinator, Run

_NAMES = 100


def submit(
    registry: Registry,
    config: FederationConfig,
    runs: Path | None,
    *,
    label: str | None = None,
    priority: int = 0,
    after: Run | None = None,
) -> Run:
    """Put a run into the queue of its federation.

    Args:
        registry: of the coordinator.
        config: of the run, after `fedpath.server.stages.check_models`.
        runs: the coordinator's folder of runs, where it is on this machine.
        label: what to call it.
        priority: of those that wait, the highest is next.
        after: the run that is to be finished before this one begins.

    Raises:
        ConfigError: the configuration is of another federation or another coordinator, or the label is taken.
    """
    federation = config.federation.name
    if (coordinator := registry.coordinator(federation)) is not None:
        check_coordinator(config, coordinator)
    elif registry.url.get_backend_name() == "sqlite" and (
        others := [name for name in registry.federations() if name != federation]
    ):
        raise _not_of("federation.name", federation, others[0])  # a coordinator's own database
    known = registry.runs(federation)
    if label is not None and any(label in (run.run, run.label) for run in known):
        raise ConfigError(f"--name {label}: a run is called so already", remedy="choose another name")
    base = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    for attempt in range(1, _NAMES):
        name = base if attempt == 1 else f"{base}-{attempt}"
        folder = None if runs is None else runs / name
        row = new_row(
            config, name, folder=folder, label=label, priority=priority, after=None if after is None else after.run
        )
        if folder is not None:
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                continue
            # Before the registry knows it: a registry that is lost is made again from this.
            write_folder(row, config, folder)
        if registry.add(row):
            return row
        if folder is not None:
            shutil.rmtree(folder)
    raise ConfigError(f"too many runs were submitted at {base}", remedy="wait a second")


def write_folder(run: Run, config: FederationConfig, folder: Path) -> None:
    """Write the first files of a run: its settings, last, are what makes the folder that of a run."""
    write_record(run, folder)
    write_json(folder / RUN_FILE, {"run": run.run, "config": settings_of_run(config)})


def check_coordinator(config: FederationConfig, coordinator: Coordinator) -> None:
    """Check that a configuration names the federation and the coordinator that is to serve it.

    Raises:
        ConfigError: naming the key that differs.
    """
    if set(config.federation.sites) != set(coordinator.sites):
        raise _not_of("federation.sites", sorted(config.federation.sites), sorted(coordinator.sites))
    if config.server.address != coordinator.address:
        raise _not_of("server.address", config.server.address, coordinator.address)
    for key in ("listen", "credentials"):
        value, wanted = getattr(config.server, key), getattr(coordinator, key)
        # Those that are not stated are the coordinator's.
        if key in config.server.model_fields_set and str(value) != str(wanted):
            raise _not_of(f"server.{key}", str(value), str(wanted))


def _not_of(key: str, value: object, wanted: object) -> ConfigError:
    return ConfigError(
        f"{key} = {value!r} is not that of the coordinator, which has {wanted!r}",
        remedy=f"put the coordinator's {key} into the file; models, training, stages and [deadline] may differ",
    )


def stop(registry: Registry, run: Run) -> str:
    """Take a run out of the queue, or ask its coordinator to end it at a safe point; say which.

    Raises:
        ConfigError: it is over.
    """
    if registry.move(run, ["queued"], "stopped", ended=now(), doing=""):
        _write(run)
        return f"run {run.run} is out of the queue"
    if registry.move(run, ["running"], "stopping"):
        return f"run {run.run} is asked to stop; what it has done is kept"
    there = registry.get(run.federation, run.run) or run
    if there.state == "stopping":
        return f"run {run.run} is stopping already"
    raise ConfigError(f"run {run.run} is {there.state}: there is nothing to stop", remedy=_next_step(there))


def resume(registry: Registry, run: Run) -> str:
    """Put a run that was stopped or has failed into the queue again; it goes on where it was.

    Raises:
        ConfigError: it cannot go on.
    """
    cleared: Mapping[str, Any] = {"ended": None, "doing": "", "error": "", "remedy": "", "exit_code": None}
    if registry.move(run, ["stopped", "failed"], "queued", **cleared):
        _write(run)
        return f"run {run.run} is in the queue again, with {run.done} of {run.rounds} rounds done"
    there = registry.get(run.federation, run.run) or run
    raise ConfigError(f"run {run.run} is {there.state}: there is nothing to resume", remedy=_next_step(there))


def _write(run: Run) -> None:
    """Keep it in the run's folder as well, where that is on this machine."""
    if run.folder is not None and (folder := Path(run.folder)).is_dir():
        write_record(run, folder)


def _next_step(run: Run) -> str:
    match run.state:
        case "finished":
            return f"look at it: fedpath run show {run.run}"
        case "queued" | "running" | "stopping":
            return f"follow it: fedpath run watch {run.run}"
        case _:
            return f"put it into the queue again: fedpath run resume {run.run}"
