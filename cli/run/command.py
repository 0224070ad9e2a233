"""`fedpath run`: the commands."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpath.cli.complete import run_names
from fedpath.cli.examples import examples
from fedpath.cli.output import AsJson, AsLines

if TYPE_CHECKING:
    from fedpath.server.registry import Registry, Run

app = typer.Typer(
    help="Queue, list, watch, stop, resume, compare and export the coordinator's runs.",
    no_args_is_help=True,
    epilog=examples(
        "fedpath run submit --dir coordinator --config federation.toml", "fedpath run watch latest --dir coordinator"
    ),
)

Dir = Annotated[
    Path | None,
    typer.Option(help="The coordinator's folder; not needed where FEDPATH_REGISTRY_URL is set."),
]
RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A run's name, the beginning of it, its label, or: latest.", autocompletion=run_names
    ),
]


@app.command(
    "list",
    epilog=examples("fedpath run list --dir coordinator", "fedpath run list --dir coordinator --state queued --json"),
)
def list_runs(
    dir: Dir = None,  # noqa: A002
    state: Annotated[list[str] | None, typer.Option(help="Only those that are queued, running, failed, …")] = None,
    as_json: AsJson = False,
) -> None:
    """List the runs, the latest last, and what they are at or wait for."""
    from fedpath.cli.run.show import print_list

    print_list(registry_of(dir), state or [], as_json=as_json)


@app.command(epilog=examples("fedpath run show latest --dir coordinator"))
def show(run: RunName, dir: Dir = None, as_json: AsJson = False) -> None:  # noqa: A002
    """Show a run: its settings, its hospitals, its rounds, who was refused and why, where its files are."""
    from fedpath.cli.run.show import print_run

    registry = registry_of(dir)
    print_run(registry, registry.find(run), as_json=as_json)


@app.command(
    epilog=examples(
        "fedpath run submit --dir coordinator --config federation.toml",
        "fedpath run submit --dir coordinator --config longer.toml --name longer --after latest",
    )
)
def submit(
    config: Annotated[Path, typer.Option(help="The run's federation.toml; [server] as the coordinator has it.")],
    dir: Dir = None,  # noqa: A002
    name: Annotated[str | None, typer.Option(help="What to call it, besides its name.")] = None,
    priority: Annotated[int, typer.Option(help="Of those that wait, the highest is next.")] = 0,
    after: Annotated[str | None, typer.Option(metavar="RUN", help="Begin when that run is finished.")] = None,
    as_json: AsJson = False,
) -> None:
    """Put a run into the queue of the coordinator (`fedpath server serve`); print its name."""
    from fedpath.cli import output
    from fedpath.cli.run.show import facts
    from fedpath.core.config import load_federation
    from fedpath.server.registry.requests import submit as put
    from fedpath.server.runs import RUNS_FOLDER
    from fedpath.server.stages import check_models

    federation = check_models(load_federation(config))
    registry = registry_of(dir, make=True)
    run = put(
        registry,
        federation,
        None if dir is None else dir / RUNS_FOLDER,
        label=name,
        priority=priority,
        after=None if after is None else registry.find(after),
    )
    if as_json:
        output.document(facts(run))
    else:
        typer.echo(f"submitted run {run.run}")
    if not registry.is_served(run.federation):
        output.note("nobody serves the queue now: start `fedpath server serve`")


@app.command(epilog=examples("fedpath run stop latest --dir coordinator"))
def stop(run: RunName, dir: Dir = None, as_json: AsJson = False) -> None:  # noqa: A002
    """Take a run out of the queue, or end it at a safe point; what it has done is kept, and `resume` goes on."""
    from fedpath.server.registry.requests import stop as ask

    registry = registry_of(dir)
    _say(ask(registry, found := registry.find(run)), registry, found, as_json=as_json)


@app.command(epilog=examples("fedpath run resume latest --dir coordinator"))
def resume(run: RunName, dir: Dir = None, as_json: AsJson = False) -> None:  # noqa: A002
    """Put a run that was stopped or has failed into the queue again: it goes on where it was."""
    from fedpath.server.registry.requests import resume as ask

    registry = registry_of(dir)
    _say(ask(registry, found := registry.find(run)), registry, found, as_json=as_json)


@app.command(
    epilog=examples("fedpath run watch latest --dir coordinator", "fedpath run watch latest --dir coordinator --json")
)
def watch(run: RunName, dir: Dir = None, as_json: AsLines = False) -> None:  # noqa: A002
    """Follow a run until it ends; exit with its code. Ctrl-C leaves the run alone."""
    from fedpath.cli.run.watch import watch_run

    registry = registry_of(dir)
    raise typer.Exit(watch_run(registry, registry.find(run), as_json=as_json))


@app.command(epilog=examples("fedpath run compare latest longer --dir coordinator"))
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN…", help="Two runs or more.")],
    dir: Dir = None,  # noqa: A002
    as_json: AsJson = False,
) -> None:
    """Show the settings in which runs differ, their figures, their curves, and whose work each is."""
    from fedpath.cli.run.compare import print_comparison

    registry = registry_of(dir)
    print_comparison(registry, [registry.find(run) for run in runs], as_json=as_json)


@app.command(
    epilog=examples(
        "fedpath run export latest --dir coordinator --to lung.zip",
        "fedpath run export latest --dir coordinator --to lung",
    )
)
def export(
    run: RunName,
    to: Annotated[Path, typer.Option(help="A file that ends with .zip, or a folder; it must not be there yet.")],
    dir: Dir = None,  # noqa: A002
    as_json: AsJson = False,
) -> None:
    """Write the model, its summary, the rounds' manifests, the settings and a table of participation."""
    from fedpath.cli.output import document
    from fedpath.server.export import export_run

    registry = registry_of(dir)
    found = registry.find(run)
    names = export_run(registry, found, to)
    if as_json:
        document({"run": found.run, "path": to, "files": names})
    else:
        typer.echo(f"run {found.run}: {len(names)} files in {to}")


def _say(words: str, registry: "Registry", run: "Run", *, as_json: bool) -> None:
    """Say what became of a request, or with --json how the run is now."""
    from fedpath.cli.output import document
    from fedpath.cli.run.show import facts

    if as_json:
        document(facts(registry.get(run.federation, run.run) or run) | {"says": words})
    else:
        typer.echo(words)


def registry_of(state: Path | None, *, make: bool = False) -> "Registry":
    """Open the registry that the options name; what only the folders know is taken in."""
    from fedpath.cli.output import note
    from fedpath.server.registry import Registry
    from fedpath.server.registry.index import index_folders
    from fedpath.server.runs import RUNS_FOLDER

    registry = Registry.open(state, make=make)
    if registry.served():  # by a coordinator, which sees to it
        return registry
    for trouble in index_folders(registry, state / RUNS_FOLDER) if state is not None else []:
        note(f"passed over: {trouble}")
    return registry
