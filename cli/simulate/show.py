"""What a simulation shows: how far it is, a line a round, and the tables at the end."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from fedpath.cli import output
from fedpath.core.events import Event
from fedpath.core.exchange.messages import Evaluate, Order, Train
from fedpath.server.records import RoundManifest, read_rounds

_TELL_EVERY_S = 15.0
_NAMED = 3
"""Hospitals that failed in a round, and are named with the reason; of the others there is a number."""
_WORST = 10
"""Hospitals that failed, and are in the table at the end."""
_DOING = {
    "describe": "what each hospital has",
    "encode": "encoding slides",
    "finish": "giving out the model",
    "refuse": "saying goodbye",
}


class View:
    """Follows a simulation."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: tuple[Progress, TaskID] | None = None
        self._doing, self._began, self._told = "", 0.0, 0.0
        self._failed: dict[str, str] = {}
        self._rounds = self._in_round = self._refused = 0

    def begin(self, hospitals: int, at_once: int, out: Path) -> None:
        """Say what is about to start."""
        self._say(f"{hospitals} hospitals, {at_once} at a time; everything goes to {out}")

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show a bar while the context lasts, where there is a terminal."""
        if not output.moves(self._console):
            yield
            return
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
        with Progress(*columns, console=self._console, transient=True) as live:
            self._bar = live, live.add_task("starting the processes", total=None)
            yield
        self._bar = None

    def progress(self, order: Order, done: int, asked: int) -> None:
        """Note that one more has answered."""
        doing, now = self._words(order), time.monotonic()
        if doing != self._doing:
            self._doing, self._began, self._told = doing, now, now
            if self._bar is not None:  # what is left is reckoned anew
                self._bar[0].reset(self._bar[1], description=doing, total=asked)
        if self._bar is not None:
            live, task = self._bar
            live.update(task, completed=done, total=asked)
        elif now - self._told >= _TELL_EVERY_S and done < asked:
            self._told = now
            left = (now - self._began) * (asked - done) / done
            self._say(f"  {doing}: {done} of {asked} hospitals, about {left:.0f} s left")

    def event(self, event: Event) -> None:
        """Print what the reader wants to see of an event."""
        values = event.values
        match event.kind:
            case "resumed" if "stages" in values:
                self._say(f"done already: {', '.join(values['stages'])}")
            case "resumed":
                self._say(f"{values['round']} of {values['rounds']} rounds are done already")
            case "stage_started":
                self._say(f"stage {values['number']} of {values['of']}: {values['stage']} ({values['stage_kind']})")
            case "round_started":
                self._rounds, self._in_round = values["rounds"], len(values["sites"])
                self._failed = {}
            case "site_refused" if "round" not in values:
                self._refused += 1
                if self._refused <= _NAMED:
                    self._say(f"{values['site']} takes no part: {values['reason']}")
            case "site_refused" | "site_lost" | "site_late":
                self._failed[values["site"]] = values["reason"]
            case "site_answered":
                self._failed.pop(values["site"], None)
            case "judged" if values["auc"] is not None and values["round"] > 0:
                self._say(f"  model of round {values['round']}: validation AUC {values['auc']:.3f}")
            case "round_finished":
                answered, counted, seconds = len(values["answered"]), len(values["contributed"]), values["seconds"]
                # A robust estimator may choose some of the updates, and leave the others out.
                unchosen = f", {answered - counted} more answered" if counted < answered else ""
                self._say(
                    f"round {values['round']} of {self._rounds}: {counted} of {self._in_round} hospitals counted"
                    f"{unchosen}, {seconds:.1f} s ({answered / max(seconds, 1e-9):.0f} a second)"
                )
                for site, reason in list(self._failed.items())[:_NAMED]:
                    self._say(f"  {site}: {reason}")
                if (more := len(self._failed) - _NAMED) > 0:
                    self._say(f"  and {more} more did not count")
            case "evaluation_missing":
                self._say(f"  {values['site']}: no figures: {values['reason']}")

    def _words(self, order: Order) -> str:
        match order:
            case Train():
                return f"round {order.round} of {order.rounds}"
            case Evaluate(split="validation"):
                return "validating the last model"
            case Evaluate():
                return "testing the best model"
            case _:
                return _DOING[order.kind]

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def show_result(console: Console, folder: Path, summary: dict[str, Any], seconds: float) -> None:
    """Print the tables at the end.

    Args:
        console: where to.
        folder: of the run.
        summary: of the run.
        seconds: that all of it took.
    """
    manifests = read_rounds(folder / summary.get("folder", ""))
    console.print(_rounds_table(manifests, summary))
    if (failed := _failed_table(manifests, summary["refused"])) is not None:
        console.print(failed)
    stage = f"stage {summary['stage']}: " if "stage" in summary else ""
    _say(console, f"{stage}best round {summary['best_round']}, validation AUC {_figure(summary['validation_auc'])}")
    tests = [figures["auc"] for figures in summary["test"].values() if figures["auc"] is not None]
    if tests:
        _say(
            console,
            f"test AUC {_figure(summary['test_auc_mean_over_sites'])}, mean over {len(tests)} hospitals weighted by "
            f"patients; hospitals: {_spread(tests)}",
        )
    answers = sum(len(manifest.counted()) for manifest in manifests)
    working = sum(manifest.seconds for manifest in manifests)
    pace = f"{answers / max(working, 1e-9):.1f} a second"
    _say(console, f"{answers} trainings in {working:.0f} s, {pace}; {seconds:.0f} s in all")
    _say(console, f"models and records: {folder}")


def _rounds_table(manifests: Sequence[RoundManifest], summary: dict[str, Any]) -> Table:
    table = Table(title=f"{summary['federation']}, run {summary['run']}")
    for heading in ("round", "counted", "did not", "training loss", "validation AUC", "s a training", "s"):
        table.add_column(heading, justify="right")
    # What a model is worth is said when the next round starts from it.
    judged = [manifest.validation_auc for manifest in manifests[1:]] + [summary["last_validation_auc"]]
    for manifest, auc in zip(manifests, judged, strict=True):
        counted = [manifest.sites[site] for site in manifest.contributed()]
        losses = [part.training_loss for part in counted if part.training_loss is not None]
        times = [part.training_s for part in counted if part.training_s is not None]
        table.add_row(
            str(manifest.round),
            str(len(counted)),
            str(len(manifest.sites) - len(counted)),
            _figure(mean(losses) if losses else None),
            _figure(auc),
            f"{mean(times):.3f}" if times else "–",
            f"{manifest.seconds:.1f}",
        )
    return table


def _failed_table(manifests: Sequence[RoundManifest], refused: dict[str, str]) -> Table | None:
    """Return the hospitals that did not count in every round; None where all did."""
    missed: Counter[str] = Counter()
    reasons = dict(refused)
    for manifest in manifests:
        for site, part in manifest.sites.items():
            if part.outcome != "answered":
                missed[site] += 1
                reasons[site] = part.reason
    missed.update(dict.fromkeys(refused.keys() - missed.keys(), len(manifests)))
    if not missed:
        return None
    more = f", {_WORST} of {len(missed)}" if len(missed) > _WORST else ""
    table = Table(title=f"hospitals that did not count in a round{more}")
    table.add_column("hospital")
    table.add_column("rounds", justify="right")
    table.add_column("last reason")
    for site, rounds in sorted(missed.items(), key=lambda item: (-item[1], item[0]))[:_WORST]:
        table.add_row(escape(site), str(rounds), escape(reasons[site]))
    return table


def _spread(values: Sequence[float]) -> str:
    """Say how far apart hospitals' figures are."""
    worst, best = f"worst {min(values):.3f}", f"best {max(values):.3f}"
    if len(values) < 4:
        return f"{worst}, {best}"
    lower, _, upper = quantiles(values, n=4)
    return f"{worst}, lower quarter {lower:.3f}, median {median(values):.3f}, upper quarter {upper:.3f}, {best}"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
