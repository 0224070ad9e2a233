"""`fedpath client`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedpath.cli.complete import site_names
from fedpath.cli.examples import examples
from fedpath.cli.monitor.options import HealthPort, MetricsPort, MonitorHost, monitored
from fedpath.cli.output import AsJson, AsLines
from fedpath.cli.page import OFF, PageHost, PageToken, page_served
from fedpath.cli.plan import EXAMPLES, plan

if TYPE_CHECKING:
    from fedpath.core.events import Event

app = typer.Typer(
    help="Take part as a hospital: join runs, see what left, plan the GPU.",
    no_args_is_help=True,
    epilog=examples(
        "fedpath client join --site A --kit kit-A --config site.toml", "fedpath client audit --config site.toml"
    ),
)
app.command(epilog=EXAMPLES)(plan)

EVENTS_FILE = "events.jsonl"


@app.command(
    epilog=examples(
        "fedpath client join --site A --kit kit-A --config site.toml",
        "fedpath client join --site A --kit kit-A --config site.toml --stay",
    )
)
def join(
    site: Annotated[str, typer.Option(help="This hospital's name in the federation.", autocompletion=site_names)],
    kit: Annotated[Path, typer.Option(help="The kit folder from the coordinator's operator.")],
    config: Annotated[Path, typer.Option(help="This hospital's site.toml.")],
    wait: Annotated[float, typer.Option(help="Seconds to wait for a coordinator that is not there yet.")] = 120.0,
    stay: Annotated[
        bool, typer.Option("--stay", help="Stay for later runs, also while the coordinator is away, until Ctrl-C.")
    ] = False,
    metrics_port: MetricsPort = None,
    health_port: HealthPort = None,
    monitor_host: MonitorHost = "127.0.0.1",
    page_port: Annotated[
        int, typer.Option(metavar="N", help="Port of this hospital's web page, 0 for a free one, -1 for no page.")
    ] = OFF,
    page_host: PageHost = "127.0.0.1",
    page_token_file: PageToken = None,
    as_json: AsLines = False,
) -> None:
    """Take part in a run, or with --stay in all: train here, send parameters, write down everything that leaves."""
    from fedpath.cli.importing import heavy_imports

    with heavy_imports():
        from fedpath.cli import output
        from fedpath.cli.status import shown
        from fedpath.cli.stopping import stop_on_signals
        from fedpath.client.agent.join import join as take_part
        from fedpath.client.monitoring.monitor import Monitor
        from fedpath.client.monitoring.watched import Watched
        from fedpath.client.page import Page
        from fedpath.client.page.app import build
        from fedpath.core.config import load_site
        from fedpath.core.errors import ConfigError, RefusedError
        from fedpath.core.events import EventLog

    settings = load_site(config)
    if settings.site.name != site:
        raise ConfigError(
            f"{config}: key 'site.name' is '{settings.site.name}', --site says '{site}'",
            remedy="give the same name in both",
        )
    stop = stop_on_signals()

    def ask_to_stop() -> None:
        events.emit("stop_asked")
        stop.set()

    monitor = Monitor(settings, kit, watched := Watched())
    page = Page(settings, stop, ask_to_stop, _in_words)
    events = EventLog(settings.state / EVENTS_FILE, output.event if as_json else shown(_say), monitor.heard, page)
    with (
        monitored(monitor_host, metrics_port, health_port, monitor.metrics, monitor.health),
        page_served(page, build, "client", events, host=page_host, port=page_port, token_file=page_token_file),
    ):
        outcome = take_part(settings, kit, events, stop, wait_s=wait, stay=stay, watched=watched)
    if outcome.refused is not None:
        raise RefusedError(
            f"the coordinator sent site {site} away: {outcome.refused}", remedy="mend what it says, then join again"
        )
    if as_json:
        output.result(site=site, finished=outcome.finished)


@app.command(
    epilog=examples("fedpath client audit --config site.toml", "fedpath client audit --config site.toml --json")
)
def audit(config: Annotated[Path, typer.Option(help="This hospital's site.toml.")], as_json: AsJson = False) -> None:
    """Check the log of what left this hospital and show it."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from fedpath.cli import output
    from fedpath.client.audit import AUDIT_FILE, INTERRUPTED, examine
    from fedpath.core.config import load_site

    path = load_site(config).state / AUDIT_FILE
    history = examine(path)
    if as_json:
        output.document({"log": path, "records": history.records, "unfinished_bytes": history.unfinished})
        return
    table = Table("no.", "when (UTC)", "to", "run", "round", "bytes", "what left")
    for record in history.records:
        table.add_row(
            str(record.number),
            record.at[:19],
            record.to,
            record.run,
            str(record.round) if record.round else "–",
            f"{record.size:,}",
            escape(f"{record.kind}: {record.holds}"),  # a refusal repeats what the coordinator sent
        )
    console = Console()
    console.print(table)
    sizes = [record.size for record in history.records if record.kind != INTERRUPTED]
    console.print(f"{len(sizes)} messages, {sum(sizes):,} bytes; the chain of {path} is whole", markup=False)
    if history.unfinished:
        console.print(f"its last line, {history.unfinished} bytes, was cut off by a crash; that message did not leave")


def _say(event: "Event") -> None:
    """Print the events this hospital's staff wants to see."""
    if (said := _in_words(event)) is not None:
        typer.echo(said)


def _in_words(event: "Event") -> str | None:
    values = event.values
    match event.kind:
        case "waiting":
            long = "" if values["wait_s"] is None else f" up to {values['wait_s']:.0f} s"
            return f"{values['reason']}; waiting{long}"
        case "refused":
            return f"sent away: {values['reason']}"
        case "order_failed":
            return f"could not do what run asked: {values['error']} ({values['remedy']})"
        case "coordinator_away":
            return f"{values['reason']}; trying again"
        case "coordinator_back":
            return "the coordinator is back"
        case "joined":
            return f"joined federation {values['federation']} at {values['address']}"
        case "described":
            return f"told the coordinator how {values['slides']} slides were encoded"
        case "clinical_described" if values["patients"] or values["held_back"]:
            return _clinical(values)
        case "clinical_not_trained" if values["round"] == 1:
            return (
                f"clinical data are not trained on: {values['patients']} training patients have some that can be used, "
                f"policy.min_patients is {values['min_patients']}"
            )
        case "trained":
            return f"round {values['round']}: trained in {values['seconds']:.1f} s, loss {values['loss']:.3f}"
        case "training_lost":
            return f"round {values['round']}: {values['reason']}; training once more"
        case "training_failed":
            return f"training failed: {values['reason']}\nremedy: {values['remedy']}\nwaiting for the next order"
        case "moving":
            return f"{values['way']} arrays: {values['done'] >> 20} of {values['total'] >> 20} MiB"
        case "carried_lost":
            return (
                f"what was kept here with round {values['round']} is gone: personal layers and control variates start "
                "from the beginning"
            )
        case "sent":
            return f"sent {values['what']}, {values['bytes']:,} bytes"
        case "page":
            return f"page: {values['address']}"
        case "stop_asked":
            return "asked to stop on the page; what is in hand is finished first"
        case "finished" if values["more"]:
            return f"stage {values['stage']} is over; kept {values['model']}"
        case "finished":
            return f"the run is over; the federated model is {values['model']}"
        case _:
            return _tuning(event)


def _tuning(event: "Event") -> str | None:
    """Say what fine-tuning does here; None of what is not worth a line."""
    values = event.values
    match event.kind:
        case "memory_planned" | "memory_tightened":
            out = "out of memory; now: " if event.kind == "memory_tightened" else ""
            twice = {"none": "", "upper": ", trained stages computed twice", "whole": ", all computed twice"}
            return (
                f"{out}{values['patches']} patches a slide, {min(values['micro_batch'], values['patches'])} at a time"
                f"{twice[values['recompute']]}: {values['peak_bytes'] / 1e9:.2f} of "
                f"{values['budget_bytes'] / 1e9:.2f} GB"
            )
        case "patches_chosen":
            fewer = f"; {values['smaller']} have fewer, all of theirs are taken" if values["smaller"] else ""
            return f"chose {values['patches']} patches of each of {values['slides']} slides{fewer}"
        case "reading_patches" if values["done"] < values["total"]:
            return f"reading patches: {values['done']} of {values['total']} slides"
        case "patches_read":
            lost = f"; {values['unreadable']} patches cannot be read and are left out" if values["unreadable"] else ""
            return f"patches of {values['slides']} slides take {values['bytes'] / 1e9:.2f} GB of disk{lost}"
        case "encoding":
            return f"encoding slide {values['done'] + 1} of {values['total']}"
        case "encoded":
            already = f", {values['already']} were done already" if values["already"] else ""
            return f"encoded {values['slides']} slides in {values['seconds']:.0f} s{already}: {values['folder']}"
        case _:
            return None


def _clinical(values: dict[str, Any]) -> str:
    """Say what the coordinator was told about clinical data, and what was kept back."""
    have = f"{values['patients']} of {values['of']} training patients have clinical data"
    if not values["told"]:
        return f"{have}: fewer than policy.min_patients ({values['min_patients']}), so the coordinator was told of none"
    told = ", ".join(f"{name} ({count})" for name, count in values["fields"].items()) or "no field"
    kept = f"; kept back, fewer than {values['min_patients']}: " + ", ".join(values["held_back"])
    return f"{have}; told the coordinator sums of {told}{kept if values['held_back'] else ''}"
