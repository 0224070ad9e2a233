"""`fedpath server`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpath.cli.examples import examples
from fedpath.cli.monitor.options import HealthPort, MetricsPort, MonitorHost, monitored
from fedpath.cli.output import AsLines
from fedpath.cli.page import PageHost, PagePort, PageToken, page_served

if TYPE_CHECKING:
    from fedpath.core.events import Event

app = typer.Typer(
    help="Run the coordinator: for one run, or for a queue of them.",
    no_args_is_help=True,
    epilog=examples(
        "fedpath server start --config federation.toml --dir coordinator",
        "fedpath server serve --config federation.toml --dir coordinator",
    ),
)


@app.command(
    epilog=examples(
        "fedpath server start --config federation.toml --dir coordinator",
        "fedpath server start --config federation.toml --dir coordinator --new",
    )
)
def start(
    config: Annotated[Path, typer.Option(help="The coordinator's federation.toml.")],
    dir: Annotated[Path, typer.Option(help="The coordinator's folder: state, models, records.")],  # noqa: A002
    new: Annotated[bool, typer.Option("--new", help="Begin a new run, even if the last one is not finished.")] = False,
    metrics_port: MetricsPort = None,
    health_port: HealthPort = None,
    monitor_host: MonitorHost = "127.0.0.1",
    page_port: PagePort = None,
    page_host: PageHost = "127.0.0.1",
    page_token_file: PageToken = None,
    as_json: AsLines = False,
) -> None:
    """Wait for the hospitals, run the rounds of each stage, keep the models and the records.

    A run that was stopped or killed goes on where it was.
    """
    from fedpath.cli.importing import heavy_imports

    with heavy_imports():
        from fedpath.cli import output
        from fedpath.cli.status import shown
        from fedpath.cli.stopping import stop_on_signals
        from fedpath.core.config import load_federation
        from fedpath.core.events import EventLog
        from fedpath.server.monitoring.monitor import Monitor
        from fedpath.server.monitoring.watched import Watched
        from fedpath.server.page import Page
        from fedpath.server.page.app import build
        from fedpath.server.start import EVENTS_FILE
        from fedpath.server.start import start as serve

    federation = load_federation(config)
    monitor = Monitor(federation, dir, watched := Watched())
    page = Page(federation, config, dir, "start", _in_words, watched)
    events = EventLog(dir / EVENTS_FILE, output.event if as_json else shown(_say), monitor.heard, page)
    with (
        monitored(monitor_host, metrics_port, health_port, monitor.metrics, monitor.health),
        page_served(page, build, "server", events, host=page_host, port=page_port, token_file=page_token_file),
    ):
        folder, summary = serve(federation, dir, events, stop_on_signals(), new=new, watched=watched)
    if as_json:
        output.result(folder=folder / summary.get("folder", ""), summary=summary)
        return
    typer.echo(f"models and records: {folder / summary.get('folder', '')}")
    stage = f"stage {summary['stage']}: " if "stage" in summary else ""
    typer.echo(f"{stage}best round {summary['best_round']}, validation AUC {_figure(summary['validation_auc'])}")
    for site, figures in summary["test"].items():
        typer.echo(f"test at {site}: AUC {_figure(figures['auc'])} over {figures['slides']} slides")


@app.command(
    "serve",
    epilog=examples(
        "fedpath server serve --config federation.toml --dir coordinator",
        "fedpath server serve --config federation.toml --dir coordinator --parallel 2",
    ),
)
def serve_queue(
    config: Annotated[Path, typer.Option(help="The coordinator's federation.toml.")],
    dir: Annotated[Path, typer.Option(help="The coordinator's folder: state, models, records.")],  # noqa: A002
    parallel: Annotated[
        int | None, typer.Option(min=1, help="Runs side by side, where hospitals allow it; server.parallel by default.")
    ] = None,
    metrics_port: MetricsPort = None,
    health_port: HealthPort = None,
    monitor_host: MonitorHost = "127.0.0.1",
    page_port: PagePort = None,
    page_host: PageHost = "127.0.0.1",
    page_token_file: PageToken = None,
    as_json: AsLines = False,
) -> None:
    """Work through the queue of `fedpath run submit`, until Ctrl-C; hospitals stay with `fedpath client join --stay`.

    Runs that a coordinator left when it was stopped or killed go on first.
    """
    from fedpath.cli import output
    from fedpath.cli.status import shown
    from fedpath.cli.stopping import stop_on_signals
    from fedpath.core.config import load_federation
    from fedpath.core.errors import StoppedError
    from fedpath.core.events import EventLog
    from fedpath.server.monitoring.monitor import Monitor
    from fedpath.server.monitoring.watched import Watched
    from fedpath.server.page import Page
    from fedpath.server.page.app import build
    from fedpath.server.serve import serve as work
    from fedpath.server.start import EVENTS_FILE

    federation = load_federation(config)
    monitor = Monitor(federation, dir, watched := Watched())
    page = Page(federation, config, dir, "serve", _of_run, watched)
    events = EventLog(dir / EVENTS_FILE, output.event if as_json else shown(_say_of_run), monitor.heard, page)
    stop = stop_on_signals()
    with (
        monitored(monitor_host, metrics_port, health_port, monitor.metrics, monitor.health),
        page_served(page, build, "server", events, host=page_host, port=page_port, token_file=page_token_file),
    ):
        work(federation, dir, events, stop, parallel=parallel or federation.server.parallel, watched=watched)
    raise StoppedError("runs that were served are in the queue again")


def _say_of_run(event: "Event") -> None:
    """Print an event of one of several runs, with the run's name in front."""
    if (line := _of_run(event)) is not None:
        typer.echo(line)


def _of_run(event: "Event") -> str | None:
    line, run = _of_queue(event), event.values.get("run")
    return line if line is None or run is None else f"{run}: {line}"


def _say(event: "Event") -> None:
    """Print the events an operator wants to see."""
    if (line := _in_words(event)) is not None:
        typer.echo(line)


def _of_queue(event: "Event") -> str | None:
    """Say what happens to the queue and to runs as a whole."""
    values = event.values
    match event.kind:
        case "serving":
            several = f", up to {values['parallel']} side by side" if values["parallel"] > 1 else ""
            return f"serving the queue at {values['address']}{several}: {values['waiting']} waiting"
        case "run_started":
            label = f" ({values['label']})" if values["label"] else ""
            goes_on = f", goes on after round {values['done']}" if values["done"] else ""
            return f"begins{label}: {values['model']}, {values['rounds']} rounds{goes_on}"
        case "run_finished":
            return f"is finished: best round {values['best_round']}, validation AUC {_figure(values['auc'])}"
        case "run_ended":
            return f"has ended: {values['error']} ({values['remedy']})"
        case _:
            return _in_words(event)


def _in_words(event: "Event") -> str | None:
    values = event.values
    match event.kind:
        case "page":
            return f"page: {values['address']}"
        case "registry_upgraded":
            return f"the registry {values['where']} was brought up from version {values['version']}"
        case "registry_away":
            return f"{values['reason']}; runs go on, the registry is written when it is back"
        case "registry_back":
            return "the registry is back"
        case "not_indexed":
            return f"passed over: {values['reason']}"
        case "listening":
            goes_on = ", which goes on" if values["goes_on"] else ""
            return f"listening on {values['address']}, run {values['run']}{goes_on}"
        case "resumed" if "stages" in values:
            return f"done already: {', '.join(values['stages'])}"
        case "resumed":
            return f"{values['round']} of {values['rounds']} rounds are done already"
        case "stage_started":
            model = f" ({values['model']})" if values["model"] else ""
            kind = f", {values['stage_kind']}" if values["stage_kind"] != values["stage"] else ""
            return f"stage {values['number']} of {values['of']}: {values['stage']}{kind}{model}"
        case "stage_finished":
            sha256 = values["encoder_sha256"]
            tuned = f"; the tuned encoder is {sha256[:12]}…" if sha256 else ""
            return f"stage {values['number']} of {values['of']} is done at {', '.join(values['sites'])}{tuned}"
        case "encoding":
            return f"encoding slides at {', '.join(values['sites'])}"
        case "encoded":
            return f"site {values['site']}: encoded its slides in {values['seconds']:.0f} s"
        case "waiting":
            missing, online = ", ".join(values["missing"]), len(values["online"])
            return f"waiting: {online} of {values['needed']} sites are here; missing: {missing}"
        case "starting_without":
            return f"starting without {', '.join(values['missing'])}"
        case "site_accepted":
            return f"site {values['site']}: accepted, {values['patients']['train']} training patients"
        case "clinical_agreed":
            return str(values["says"])
        case "clinical_late":
            does = "is trained on" if values["counted"] else "is not used: the run began without any"
            return f"site {values['site']}: its clinical data of {values['patients']} patients {does}"
        case "site_refused":
            where = f"round {values['round']}, " if "round" in values else ""
            return f"{where}site {values['site']}: refused: {values['reason']}"
        case "quorum_missing":
            counted = f"{values['counted']} of {values['needed']} updates are here"
            return f"round {values['round']}: {counted}; waiting for {', '.join(values['missing'])}"
        case "figures_missing":
            return f"the last round is done; waiting for {', '.join(values['missing'])}: {values['what']}"
        case "checkpoint_damaged":
            what, back_to = values["what"], values["back_to"]
            return f"the {what} of round {values['round']} is damaged: going on from round {back_to}"
        case "journal_damaged":
            return f"the journal of round {values['round']} is damaged: its updates are asked for again"
        case "combiner_replaced":
            return f"a process that combines updates was lost and is replaced: {values['reason']}"
        case "cluster_lost":
            return f"the Ray cluster was lost ({values['reason']}); connecting again"
        case "moving":
            done, total = values["done"] >> 20, values["total"] >> 20
            return f"site {values['site']}: {values['way']} arrays, {done} of {total} MiB"
        case "site_lost" | "site_late":
            return f"round {values['round']}, site {values['site']}: {values['reason']}"
        case "judged" if values["auc"] is not None or values["loss"] is not None:
            return f"model of round {values['round']}: validation AUC {_figure(values['auc'])}"
        case "round_finished":
            counted = ", ".join(values["contributed"]) or "none"
            said = f"round {values['round']}: counted {counted} in {values['seconds']:.1f} s"
            unchosen = sorted(set(values["answered"]) - set(values["contributed"]))
            return f"{said}; answered, and not chosen: {', '.join(unchosen)}" if unchosen else said
        case "groups_left":
            return "\n".join(
                f"round {values['round']}: parameter group {group} stays as it was: {came} updates hold it, "
                f"aggregation.combine needs {values['needed']}"
                for group, came in values["groups"].items()
            )
        case "evaluation_missing" | "farewell_unheard":
            return f"site {values['site']}: no answer to the last message: {values['reason']}"
        case _:
            return None


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
