"""`fedpath server`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedpath.core.events import Event

app = typer.Typer(help="The coordinator.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `start` a subcommand while it is the only one."""


@app.command()
def start(
    config: Annotated[Path, typer.Option(help="The coordinator's federation.toml.")],
    dir: Annotated[Path, typer.Option(help="The coordinator's folder: state, models, records.")],  # noqa: A002
) -> None:
    """Wait for the hospitals, run the rounds, keep the models and the records."""
    from fedpath.cli.stopping import stop_on_signals
    from fedpath.core.config import load_federation
    from fedpath.core.events import EventLog
    from fedpath.server.start import EVENTS_FILE
    from fedpath.server.start import start as serve

    federation = load_federation(config)
    events = EventLog(dir / EVENTS_FILE, _say)
    folder, summary = serve(federation, dir, events, stop_on_signals())
    typer.echo(f"models and records: {folder}")
    typer.echo(f"best round {summary['best_round']}, validation AUC {_figure(summary['validation_auc'])}")
    for site, figures in summary["test"].items():
        typer.echo(f"test at {site}: AUC {_figure(figures['auc'])} over {figures['slides']} slides")


def _say(event: "Event") -> None:
    """Print the events an operator wants to see."""
    values = event.values
    match event.kind:
        case "listening":
            typer.echo(f"listening on {values['address']}, run {values['run']}")
        case "waiting":
            missing, online = ", ".join(values["missing"]), len(values["online"])
            typer.echo(f"waiting: {online} of {values['needed']} sites are here; missing: {missing}")
        case "starting_without":
            typer.echo(f"starting without {', '.join(values['missing'])}")
        case "site_accepted":
            typer.echo(f"site {values['site']}: accepted, {values['patients']['train']} training patients")
        case "clinical_agreed":
            typer.echo(values["says"])
        case "clinical_late":
            does = "is trained on" if values["counted"] else "is not used: the run began without any"
            typer.echo(f"site {values['site']}: its clinical data of {values['patients']} patients {does}")
        case "site_refused":
            where = f"round {values['round']}, " if "round" in values else ""
            typer.echo(f"{where}site {values['site']}: refused: {values['reason']}")
        case "site_lost" | "site_late":
            typer.echo(f"round {values['round']}, site {values['site']}: {values['reason']}")
        case "judged" if values["auc"] is not None or values["loss"] is not None:
            typer.echo(f"model of round {values['round']}: validation AUC {_figure(values['auc'])}")
        case "round_finished":
            answered = ", ".join(values["answered"])
            typer.echo(f"round {values['round']}: counted {answered} in {values['seconds']:.1f} s")
        case "evaluation_missing" | "farewell_unheard":
            typer.echo(f"site {values['site']}: no answer to the last message: {values['reason']}")


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
