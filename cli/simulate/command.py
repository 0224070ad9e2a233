"""``fedpath simulate``: a federation of many hospitals on one machine or one cluster."""

from pathlib import Path
from typing import Annotated

import typer

from fedpath.cli.examples import examples
from fedpath.cli.output import AsLines

EXAMPLES = examples(
    "fedpath simulate --config federation.toml --sites 200",
    "fedpath simulate --config federation.toml --sites 50 --data cohort --skew 0.3 --failures 0.01",
)


def simulate_command(
    config: Annotated[Path, typer.Option(help="federation.toml, as the coordinator has it.")],
    sites: Annotated[
        int | None,
        typer.Option(min=1, help="How many hospitals; by default those that federation.toml names."),
    ] = None,
    site: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="A hospital by its site.toml, in place of a dealt one; repeatable."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Cohort whose patients are dealt to the hospitals: a folder with manifest.csv and features/, or a "
            "site.toml; by default one is drawn.",
        ),
    ] = None,
    patients: Annotated[int, typer.Option(min=1, help="Patients of a hospital, where they are drawn.")] = 10,
    skew: Annotated[
        float | None,
        typer.Option(metavar="ALPHA", help="Hospitals differ in their labels: Dirichlet's α, smaller for more."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where everything is kept, also what the hospitals have; a simulation that was stopped goes on there. "
            "By default models and records alone, in fedpath-simulation, then -2, -3, …",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="In place of federation.seed; deals and draws too.")] = None,
    failures: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the trainings in which the hospital's process is killed.")
    ] = 0.0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Hospitals at work at the same time; by default one a core.")
    ] = None,
    ray_address: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Ray cluster that does the work; 'local' starts one here.")
    ] = "local",
    gpus: Annotated[
        float, typer.Option(min=0, help="Share of a GPU for each hospital at work, for example 0.25; 0: on the CPU.")
    ] = 0.0,
    new: Annotated[bool, typer.Option("--new", help="Begin a new run, even if the last one is not finished.")] = False,
    as_json: AsLines = False,
) -> None:
    """Run a federation of many hospitals on this machine, before anybody is asked to join.

    Each hospital is a task; file, coordinator and training are those of a real federation. A hospital whose process
    dies, or whose data is broken, is left out by name, and the run goes on.
    """
    import sys

    from rich.console import Console

    from fedpath.cli.demo.plan import free_folder
    from fedpath.cli.simulate.session import Options, run
    from fedpath.core.config import load_federation

    given = dict(_named(text) for text in site or [])
    options = Options(
        config=load_federation(config),
        sites=sites,
        given=given,
        data=data,
        patients=patients,
        skew=skew,
        out=free_folder("fedpath-simulation") if out is None else out,
        keep=out is not None,
        seed=seed,
        failures=failures,
        workers=workers,
        address=ray_address,
        gpus=gpus,
        new=new,
    )
    run(options, Console(file=sys.stdout, quiet=as_json), as_json=as_json)


def _named(text: str) -> tuple[str, Path]:
    """Return name and file of a hospital.

    Raises:
        ConfigError: the text is not NAME=FILE.
    """
    from fedpath.core.errors import ConfigError

    name, sign, path = text.partition("=")
    if not (name and sign and path):
        raise ConfigError(f"--site {text}: is not NAME=FILE", remedy=f"give --site A={text or 'A/site.toml'}")
    return name, Path(path)
