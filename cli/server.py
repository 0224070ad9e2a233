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
    new: Annotated[bool, typer.Option("--new", help="Begin a new run, even if the last one is not finished.")] = False,
) -> None:
    """Wait for the hospitals, run the rounds of each stage, keep the models and the records.

    A run that was stopped or killed goes on where it was.
    """
    from fedpath.cli.importing import heavy_imports

    with heavy_imports():
        from fedpath.cli.stopping import stop_on_signals
        from fedpath.core.config import load_federation
        from fedpath.core.events import EventLog
        from fedpath.server.start import EVENTS_FILE
        from fedpath.server.start import start as serve

    federation = load_federation(config)
    events = EventLog(dir / EVENTS_FILE, _say)
    folder, summary = serve(federation, dir, events, stop_on_signals(), new=new)
    typer.echo(f"models and records: {folder / summary.get('folder', '')}")
    stage = f"stage {summary['stage']}: " if "stage" in summary else ""
    typer.echo(f"{stage}best round {summary['best_round']}, validation AUC {_figure(summary['validation_auc'])}")
    for site, figures in summary["test"].items():
        typer.echo(f"test at {site}: AUC {_figure(figures['auc'])} over {figures['slides']} slides")


def _say(event: "Event") -> None:
    """Print the events an operator wants to see."""
    values = event.values
    match event.kind:
        case "listening":
            goes_on = ", which goes on" if values["goes_on"] else ""
            typer.echo(f"listening on {values['address']}, run {values['run']}{goes_on}")
        case "resumed" if "stages" in values:
            typer.echo(f"done already: {', '.join(values['stages'])}")
        case "resumed":
            typer.echo(f"{values['round']} of {values['rounds']} rounds are done already")
        case "stage_started":
            model = f" ({values['model']})" if values["model"] else ""
            kind = f", {values['stage_kind']}" if values["stage_kind"] != values["stage"] else ""
            typer.echo(f"stage {values['number']} of {values['of']}: {values['stage']}{kind}{model}")
        case "stage_finished":
            sha256 = values["encoder_sha256"]
            tuned = f"; the tuned encoder is {sha256[:12]}…" if sha256 else ""
            typer.echo(f"stage {values['number']} of {values['of']} is done at {', '.join(values['sites'])}{tuned}")
        case "encoding":
            typer.echo(f"encoding slides at {', '.join(values['sites'])}")
        case "encoded":
            typer.echo(f"site {values['site']}: encoded its slides in {values['seconds']:.0f} s")
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
        case "quorum_missing":
            counted = f"{values['counted']} of {values['needed']} updates are here"
            typer.echo(f"round {values['round']}: {counted}; waiting for {', '.join(values['missing'])}")
        case "figures_missing":
            typer.echo(f"the last round is done; waiting for {', '.join(values['missing'])}: {values['what']}")
        case "checkpoint_damaged":
            what, back_to = values["what"], values["back_to"]
            typer.echo(f"the {what} of round {values['round']} is damaged: going on from round {back_to}")
        case "journal_damaged":
            typer.echo(f"the journal of round {values['round']} is damaged: its updates are asked for again")
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
