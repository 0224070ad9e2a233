"""`fedpath run watch`: follow a run until it ends; in a terminal as a table that changes, elsewhere line by line."""

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import typer
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from fedpath.cli import output
from fedpath.cli.run.show import facts, figure, part_facts, round_facts, rounds_table, says
from fedpath.server.registry import Part, Registry, RegistryAwayError, Round, Run

_LOOK_S = 0.5
_SHOWN = 12
"""Rounds in the table of a terminal."""
_OVER = ("finished", "failed", "stopped")


def watch_run(registry: Registry, run: Run, *, as_json: bool = False) -> int:
    """Follow a run; return the exit code that it ended with."""
    console = output.console(quiet=as_json)
    told = _Told() if as_json else _Said()
    display = Live(console=console, refresh_per_second=4) if output.moves(console) else nullcontext()
    with display as screen:
        while True:
            there = _look(registry, run)
            if there is not None:
                run, rounds, parts = there
                if screen is not None:
                    screen.update(_picture(run, rounds, parts))
                else:
                    told.tell(run, rounds, parts)
                if run.state in _OVER:
                    break
            threading.Event().wait(_LOOK_S)
    if as_json:
        output.result(**facts(run))
        return run.exit_code or 0
    if screen is not None:
        typer.echo(_ending(run))
    if run.remedy:
        typer.echo(f"remedy: {run.remedy}")
    return run.exit_code or 0


def _look(registry: Registry, run: Run) -> tuple[Run, list[Round], list[Part]] | None:
    """Return a run as it is now; None while the registry cannot be reached."""
    try:
        there = registry.get(run.federation, run.run)
        history = registry.history(run)
    except RegistryAwayError:
        return None
    return (there or run), history.rounds, history.parts


class _Said:
    """What was printed already, where lines are."""

    def __init__(self) -> None:
        self._state, self._doing = "", ""
        self._rounds: dict[tuple[str, int], str] = {}

    def tell(self, run: Run, rounds: list[Round], parts: list[Part]) -> None:
        """Print what is new."""
        for line in self.new(run, rounds, parts):
            typer.echo(line)

    def new(self, run: Run, rounds: list[Round], parts: list[Part]) -> Iterator[str]:
        """Yield what is new."""
        for round_ in rounds:
            key = round_.stage, round_.round
            if self._rounds.get(key) != round_.result:
                self._rounds[key] = round_.result
                yield _line(round_, [part for part in parts if (part.stage, part.round) == key])
        if run.state != self._state and run.state not in _OVER:
            yield f"run {run.run} is {run.state}"
        self._state = run.state
        doing = says(run, {})
        if run.state not in _OVER and doing and doing != self._doing:
            yield doing
        self._doing = doing
        if run.state in _OVER:
            yield _ending(run)


class _Told:
    """The same for programs: a line when the run's state or what it is at changes, and one a round."""

    def __init__(self) -> None:
        self._last: dict[str, Any] = {}
        self._rounds: dict[tuple[str, int], str] = {}

    def tell(self, run: Run, rounds: list[Round], parts: list[Part]) -> None:
        """Print what is new."""
        for round_ in rounds:
            key = round_.stage, round_.round
            if self._rounds.get(key) != round_.result:
                self._rounds[key] = round_.result
                sites = {part.site: part_facts(part) for part in parts if (part.stage, part.round) == key}
                output.line("round", run=run.run, **round_facts(round_), sites=sites)
        now = {"state": run.state, "doing": says(run, {}), "done": run.done, "rounds": run.rounds}
        if now != self._last:
            self._last = now
            output.line("run", run=run.run, **now)


def _line(round_: Round, parts: list[Part]) -> str:
    """Return a round in one line."""
    counted = ", ".join(part.site for part in parts if part.outcome == "answered")
    others = "".join(f"; {part.site} {part.outcome}: {part.reason}" for part in parts if part.outcome != "answered")
    stage = f"{round_.stage}, " if round_.stage else ""
    before = f", AUC of the model before {figure(round_.validation_auc)}"
    return f"{stage}round {round_.round}: counted {counted} in {round_.seconds:.1f} s{before}{others}"


def _ending(run: Run) -> str:
    match run.state:
        case "finished":
            return f"run {run.run} is finished: best round {run.best_round}, validation AUC {figure(run.best_auc)}"
        case "failed":
            return f"run {run.run} has failed: {run.error}"
        case _:
            return f"run {run.run} was stopped after {run.done} of {run.rounds} rounds"


def _picture(run: Run, rounds: list[Round], parts: list[Part]) -> Group:
    """Return what a terminal shows."""
    label = f" ({run.label})" if run.label else ""
    share = run.done / run.rounds if run.rounds else 0.0
    bar = "█" * round(30 * share) + "░" * (30 - round(30 * share))
    best = "" if run.best_round is None else f"   best AUC {figure(run.best_auc)} (round {run.best_round})"
    stage = rounds[-1].stage if rounds else ""
    shown = [round_ for round_ in rounds if round_.stage == stage][-_SHOWN:]
    numbers = {round_.round for round_ in shown}
    table = rounds_table(shown, [part for part in parts if part.stage == stage and part.round in numbers])
    return Group(
        Text.from_markup(f"[bold]run {escape(run.run + label)}[/]  {run.state}"),
        Text(f"{bar} {run.done}/{run.rounds} rounds{best}"),
        Text(says(run, {})),
        table,
    )
