"""`fedpath run compare`: in which settings runs differ, what came out, and whose work it is."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedpath.cli.output import document
from fedpath.cli.run.show import figure
from fedpath.core.errors import ConfigError
from fedpath.server.folder import SUMMARY_FILE
from fedpath.server.registry import Registry, Run
from fedpath.server.runs import flat


def print_comparison(registry: Registry, runs: Sequence[Run], *, as_json: bool) -> None:
    """Print runs side by side."""
    if len({run.id for run in runs}) < 2:
        raise ConfigError("a comparison needs two different runs", remedy="name another one as well")
    compared = {run.run: _figures(registry, run) for run in runs}
    settings = differing(runs)
    if as_json:
        document({"settings": settings, "runs": compared})
        return
    console = Console(highlight=False)
    names = [escape(f"{run.run} ({run.label})" if run.label else run.run) for run in runs]
    table = Table("setting", *names)
    for key, values in settings.items():
        table.add_row(escape(key), *(escape(_word(values[run.run])) for run in runs))
    console.print(table if settings else "the runs have the same settings")
    console.print(_results(runs, compared, names))
    console.print(_curves(runs, compared, names))


def differing(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Return the settings in which runs differ: by key, the value of each run; None where a run has no such key."""
    own = {run.run: dict(flat(run.config)) for run in runs}
    keys = dict.fromkeys(key for values in own.values() for key in values)
    table = {key: {name: values.get(key) for name, values in own.items()} for key in keys}
    return {key: values for key, values in table.items() if len({repr(value) for value in values.values()}) > 1}


def _figures(registry: Registry, run: Run) -> dict[str, Any]:
    """Return what came out of a run, as far as it is."""
    history = registry.history(run)
    stage = history.rounds[-1].stage if history.rounds else ""  # of a pipeline, the latest: its model is the result
    summary = _summary(run)
    counted: dict[str, list[int]] = {}
    for part in history.parts:
        if part.stage == stage and part.outcome == "answered":
            counted.setdefault(part.site, []).append(part.round)
    # A round validates the model that it started from.
    curve = {row.round - 1: row.validation_auc for row in history.rounds if row.stage == stage}
    if history.rounds and "last_validation_auc" in summary:
        curve[history.rounds[-1].round] = summary["last_validation_auc"]
    rounds = [row for row in history.rounds if row.stage == stage]
    return {
        "label": run.label,
        "state": run.state,
        "model": run.model,
        "done": run.done,
        "rounds": run.rounds,
        "best_round": run.best_round,
        "best_auc": run.best_auc,
        "test_auc": summary.get("test_auc_mean_over_sites"),
        "test": {site: figures["auc"] for site, figures in summary.get("test", {}).items()},
        "seconds": sum(row.seconds for row in rounds),
        "bytes": sum(part.sent_bytes + part.received_bytes for part in history.parts if part.stage == stage),
        "patients": max((max(row.patients.values(), default=0) for row in rounds), default=0),
        "counted": counted,
        "validation_auc": curve,
    }


def _summary(run: Run) -> dict[str, Any]:
    """Return a run's summary, where it is finished and its files are on this machine."""
    path = None if run.folder is None else Path(run.folder) / SUMMARY_FILE
    return dict(json.loads(path.read_text())) if path is not None and path.is_file() else {}


def _results(runs: Sequence[Run], compared: dict[str, dict[str, Any]], names: Sequence[str]) -> Table:
    table = Table("", *names)

    def row(what: str, key: str, form: Any = str) -> None:
        table.add_row(what, *(form(compared[run.run][key]) for run in runs))

    row("state", "state")
    table.add_row("rounds", *(f"{run.done}/{run.rounds}" for run in runs))
    row("best round", "best_round", lambda value: "–" if value is None else str(value))
    row("validation AUC", "best_auc", figure)
    row("test AUC, mean over hospitals", "test_auc", figure)
    for site in sorted({site for values in compared.values() for site in values["test"]}):
        table.add_row(f"test AUC at {escape(site)}", *(figure(compared[run.run]["test"].get(site)) for run in runs))
    row("patients counted a round", "patients")
    row("time in rounds", "seconds", lambda value: f"{value:.1f} s")
    row("bytes moved", "bytes", lambda value: f"{value:,}")
    for site in sorted({site for values in compared.values() for site in values["counted"]}):
        counts = [len(compared[run.run]["counted"].get(site, ())) for run in runs]
        table.add_row(f"rounds that {escape(site)} counted in", *(str(count) if count else "–" for count in counts))
    return table


def _curves(runs: Sequence[Run], compared: dict[str, dict[str, Any]], names: Sequence[str]) -> Table:
    table = Table("validation AUC after round", *names)
    for number in sorted({number for values in compared.values() for number in values["validation_auc"]}):
        cells = []
        for run in runs:
            values = compared[run.run]
            text = figure(values["validation_auc"].get(number))
            cells.append(f"[bold]{text}[/]" if number == values["best_round"] else text)
        table.add_row(str(number), *cells)
    return table


def _word(value: object) -> str:
    return "not set" if value is None else str(value)
