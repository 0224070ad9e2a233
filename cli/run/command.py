"""`fedpath run`: the commands."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedpath.server.registry import Registry

app = typer.Typer(help="The coordinator's runs: submit, list, watch, stop, compare, export.", no_args_is_help=True)

Dir = Annotated[
    Path | None,
    typer.Option(help="The coordinator's folder; not needed where FEDPATH_REGISTRY_URL is set."),
]
RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's name, the beginning of it, its label, or: latest.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_runs(
    dir: Dir = None,  # noqa: A002
    state: Annotated[list[str] | None, typer.Option(help="Only those that are queued, running, failed, …")] = None,
    as_json: AsJson = False,
) -> None:
    """List the runs, the latest last, and what they are at or wait for."""
    from fedpath.cli.run.show import print_list

    print_list(registry_of(dir), state or [], as_json=as_json)


@app.command()
def show(run: RunName, dir: Dir = None, as_json: AsJson = False) -> None:  # noqa: A002
    """Show a run: its settings, its hospitals, its rounds, who was refused and why, where its files are."""
    from fedpath.cli.run.show import print_run

    registry = registry_of(dir)
    print_run(registry, registry.find(run), as_json=as_json)


@app.command()
def export(
    run: RunName,
    to: Annotated[Path, typer.Option(help="A file that ends with .zip, or a folder; it must not be there yet.")],
    dir: Dir = None,  # noqa: A002
) -> None:
    """Write the model, its summary, the rounds' manifests, the settings and a table of participation."""
    from fedpath.server.export import export_run

    registry = registry_of(dir)
    found = registry.find(run)
    names = export_run(registry, found, to)
    typer.echo(f"run {found.run}: {len(names)} files in {to}")


def registry_of(state: Path | None) -> "Registry":
    """Open the registry that the options name; what only the folders know is taken in."""
    from fedpath.server.registry import Registry
    from fedpath.server.registry.index import index_folders
    from fedpath.server.runs import RUNS_FOLDER

    registry = Registry.open(state)
    for trouble in index_folders(registry, state / RUNS_FOLDER) if state is not None else []:
        typer.echo(f"passed over: {trouble}", err=True)
    return registry
