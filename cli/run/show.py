"""Print runs: `fedpath run list` and `fedpath run show`."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedpath.cli.output import document
from fedpath.core.config import FederationConfig
from fedpath.core.errors import ConfigError, did_you_mean
from fedpath.server.folder import settings_of_run
from fedpath.server.registry import Part, Registry, Round, Run
from fedpath.server.registry.tables import STATES
from fedpath.server.runs import flat

_COLOURS = {"running": "green", "stopping": "yellow", "failed": "red", "finished": "bold", "queued": "cyan"}


def print_list(registry: Registry, states: Sequence[str], *, as_json: bool) -> None:
    """Print a table of the runs."""
    for state in states:
        if state not in STATES:
            remedy = did_you_mean(state, STATES, f"use one of: {', '.join(STATES)}")
            raise ConfigError(f"--state {state}: no such state", remedy=remedy)
    runs = [run for run in registry.runs() if not states or run.state in states]
    if as_json:
        document([facts(run) for run in runs])
        return
    if not runs:
        typer.echo(f"no run{' in that state' if states else ' yet'} in {registry.where}")
        return
    federations = sorted({run.federation for run in runs})
    places = _places(registry, federations)
    table = Table("run", "state", "model", "round", "AUC", "submitted (UTC)", "what it is at")
    for run in runs:
        name = run.run if len(federations) == 1 else f"{run.federation} {run.run}"
        table.add_row(
            escape(f"{name} ({run.label})" if run.label else name),
            f"[{_COLOURS.get(run.state, 'dim')}]{run.state}[/]",
            escape(run.model),
            f"{run.done}/{run.rounds}",
            figure(run.best_auc),
            f"{run.submitted:%Y-%m-%d %H:%M}",
            escape(says(run, places)),
        )
    Console().print(table)
    for federation in federations:
        here = [run for run in runs if run.federation == federation]
        if any(run.state in ("queued", "running") for run in here) and not registry.is_served(federation):
            if all(run.state == "running" for run in here if run.state in ("queued", "running")):
                continue  # of `fedpath server start`, which serves no queue
            typer.echo(f"nobody serves the queue of federation {federation}: start `fedpath server serve`")


def _places(registry: Registry, federations: Sequence[str]) -> dict[int, int]:
    """Return the place of each queued run in its queue, from 1 on."""
    return {run.id: place for name in federations for place, run in enumerate(registry.queue(name), 1)}


def says(run: Run, places: dict[int, int]) -> str:
    """Return what a run is at, waits for, or came to, in words."""
    match run.state:
        case "queued":
            return run.doing or f"place {places.get(run.id, '?')} in the queue"
        case "failed":
            return run.error
        case "running" | "stopping":
            return run.doing
        case "finished":
            return "" if run.best_round is None else f"best round {run.best_round}"
        case _:
            return ""


def facts(run: Run) -> dict[str, Any]:
    """Return what a script may want to know of a run."""
    names = (
        *("federation", "run", "label", "state", "priority", "after", "model", "rounds", "done", "best_round"),
        *("best_auc", "doing", "error", "remedy", "exit_code", "refused", "folder"),
    )
    times = ("submitted", "started", "ended")
    moments = {name: getattr(run, name).isoformat() if getattr(run, name) else None for name in times}
    return {name: getattr(run, name) for name in names} | moments


def print_run(registry: Registry, run: Run, *, as_json: bool) -> None:
    """Print all that is known of a run."""
    history = registry.history(run)
    differ = differences(run)
    if as_json:
        parts: dict[tuple[str, int], dict[str, Any]] = {}
        for part in history.parts:
            parts.setdefault((part.stage, part.round), {})[part.site] = part_facts(part)
        rounds = [round_facts(round_) | {"sites": parts[round_.stage, round_.round]} for round_ in history.rounds]
        document(facts(run) | {"settings": differ, "config": run.config, "round": rounds})
        return
    console = Console(highlight=False)
    label = f" ({run.label})" if run.label else ""
    console.print(f"[bold]run {escape(run.run + label)}[/] of federation {escape(run.federation)}: {run.state}")
    for text in _lines(registry, run):
        console.print(escape(text))
    console.print("settings that differ from the defaults:")
    for key, value in differ.items():
        console.print(f"  {escape(key)} = {escape(repr(value))}")
    for stage in dict.fromkeys(round_.stage for round_ in history.rounds):
        if stage:
            console.print(f"stage {escape(stage)}")
        console.print(
            rounds_table(
                [round_ for round_ in history.rounds if round_.stage == stage],
                [part for part in history.parts if part.stage == stage],
            )
        )
    for site, reason in sorted(run.refused.items()):
        console.print(escape(f"site {site} was kept out: {reason}"))
    for part in history.parts:
        if part.outcome != "answered":
            where = f"{part.stage}, " if part.stage else ""
            console.print(escape(f"{where}round {part.round}, site {part.site}: {part.outcome}: {part.reason}"))


def _lines(registry: Registry, run: Run) -> Iterator[str]:
    times = [("submitted", run.submitted), ("started", run.started), ("ended", run.ended)]
    yield ", ".join(f"{what} {when:%Y-%m-%d %H:%M:%S}" for what, when in times if when is not None) + " (UTC)"
    if run.state == "running" and run.started is not None:
        yield f"for {(datetime.now(UTC) - run.started).total_seconds():.0f} s"
    if run.after:
        yield f"begins after run {run.after}"
    if said := says(run, _places(registry, [run.federation])):
        yield said
    if run.remedy:
        yield f"remedy: {run.remedy}"
    yield f"{run.done} of {run.rounds} rounds are done"
    if run.best_round is not None:
        yield f"best round {run.best_round}, validation AUC {figure(run.best_auc)}"
    if run.folder is not None:
        here = "" if Path(run.folder).is_dir() else ", on the coordinator's machine"
        yield f"models and records: {run.folder}{here}"


def rounds_table(rounds: Sequence[Round], parts: Sequence[Part]) -> Table:
    """Return a table of rounds: each site's part, what counted, what it took."""
    sites = sorted({part.site for part in parts})
    of = {(part.round, part.site): part for part in parts}
    table = Table("round", "AUC before", *map(escape, sites), "patients", "s")
    for round_ in rounds:
        cells = [_cell(of.get((round_.round, site))) for site in sites]
        patients = max(round_.patients.values(), default=0)
        table.add_row(str(round_.round), figure(round_.validation_auc), *cells, str(patients), f"{round_.seconds:.1f}")
    return table


def _cell(part: Part | None) -> str:
    if part is None:
        return "–"
    if part.outcome != "answered":
        return f"[red]{part.outcome}[/]"
    late = f", of round {part.of_round}" if part.of_round is not None else ""
    return f"{max(part.patients.values(), default=0)} patients{late}"


def round_facts(round_: Round) -> dict[str, Any]:
    """Return a round as JSON."""
    return {column.key: getattr(round_, column.key) for column in Round.__table__.columns if column.key != "run_id"}


def part_facts(part: Part) -> dict[str, Any]:
    """Return a site's part in a round as JSON."""
    hidden = ("run_id", "stage", "round", "site")
    return {column.key: getattr(part, column.key) for column in Part.__table__.columns if column.key not in hidden}


def differences(run: Run) -> dict[str, Any]:
    """Return the settings of a run that are not the defaults, by key as in federation.toml."""
    needed: dict[str, dict[str, Any]] = {
        "federation": {"name": "x", "sites": ["x"]},
        "server": {"address": "x:1"},
        "task": {"labels": ["x", "y"]},
        "features": {"encoder": "x", "width": 1},
    }
    plain = dict(flat(settings_of_run(FederationConfig.model_validate(needed))))
    # The required keys differ always: that is how a reader knows what the run is about.
    own = dict(flat(run.config))
    required = {f"{table}.{key}" for table, keys in needed.items() for key in keys}
    return {key: value for key, value in own.items() if key in required or plain.get(key) != value}


def figure(value: float | None) -> str:
    """Return a figure as it is printed."""
    return "–" if value is None else f"{value:.3f}"
