"""The options of ``fedpath init``: each answers one of the questions beforehand."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedpath.cli.complete import recipe_names
from fedpath.cli.examples import examples
from fedpath.cli.output import AsJson

EXAMPLES = examples(
    "fedpath init",
    "fedpath init --role coordinator --recipe acmil --name lung --sites A,B,C --address fedpath.example.org:9443 --yes",
    "fedpath init --role hospital --kit kit-A --data /data/lung --gpu-gb 8 --yes",
)
_COORDINATOR, _HOSPITAL = "The coordinator's federation.toml", "A hospital's site.toml"


class Role(StrEnum):
    """Whose file it is."""

    COORDINATOR = "coordinator"
    HOSPITAL = "hospital"


def init_command(
    role: Annotated[Role | None, typer.Option(help="Whose file to write: federation.toml or site.toml.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The file; by default federation.toml or site.toml. It must not exist."),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Ask nothing: what no option answers is left at its default.")
    ] = False,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Where to begin: a name of `fedpath recipes`.",
            rich_help_panel=_COORDINATOR,
            autocompletion=recipe_names,
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The federation's name.", rich_help_panel=_COORDINATOR, show_default=False)
    ] = None,
    sites: Annotated[
        str | None, typer.Option(help="The hospitals' names, with commas: A,B,C.", rich_help_panel=_COORDINATOR)
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Where the hospitals reach the coordinator.", rich_help_panel=_COORDINATOR
        ),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="The labels, with commas, in class order.", rich_help_panel=_COORDINATOR)
    ] = None,
    kit: Annotated[
        Path | None,
        typer.Option(help="The kit folder from the coordinator's operator.", rich_help_panel=_HOSPITAL),
    ] = None,
    site: Annotated[
        str | None, typer.Option(help="This hospital's name; the kit's by default.", rich_help_panel=_HOSPITAL)
    ] = None,
    federation: Annotated[
        str | None,
        typer.Option(help="The federation to take part in; the kit's by default.", rich_help_panel=_HOSPITAL),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder with manifest.csv and features/; or what will be.", rich_help_panel=_HOSPITAL
        ),
    ] = None,
    slides: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder with the slides, for fine-tuning.", rich_help_panel=_HOSPITAL),
    ] = None,
    gpu_gb: Annotated[
        str | None,
        typer.Option(metavar="GB", help="What fine-tuning may use of the GPU's memory.", rich_help_panel=_HOSPITAL),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a few questions and write a commented federation.toml or site.toml.

    An answer that cannot be is asked again, with the reason. With --json nothing is asked either.
    """
    from fedpath.cli.init.coordinator import ask_coordinator
    from fedpath.cli.init.hospital import ask_hospital
    from fedpath.cli.init.questions import Questions
    from fedpath.cli.output import console, document

    questions = Questions(console(quiet=as_json), silent=yes or as_json)
    whose = Role(
        questions.choose(
            "Whose file is it?",
            {
                Role.COORDINATOR: "federation.toml, for who runs the coordinator",
                Role.HOSPITAL: "site.toml, for a hospital that takes part",
            },
            option="--role",
            given=role,
        )
    )
    if whose is Role.COORDINATOR:
        written = ask_coordinator(
            questions,
            out or Path("federation.toml"),
            recipe=recipe,
            name=name,
            sites=sites,
            address=address,
            labels=labels,
        )
    else:
        written = ask_hospital(
            questions,
            out or Path("site.toml"),
            kit=kit,
            site=site,
            federation=federation,
            data=data,
            slides=slides,
            gpu_gb=gpu_gb,
        )
    if as_json:
        document({"role": whose, "path": written.path, **written.answers})
        return
    typer.echo(f"wrote {written.path}")
    for step in written.next_steps:
        typer.echo(f"  {step}")
