"""``fedpath slides draw``: a drawn hospital to try things on."""

from pathlib import Path
from typing import Annotated

import typer

from fedpath.cli.output import AsJson


def draw_command(
    folder: Annotated[Path, typer.Argument(help="The hospital's folder; made if need be.")],
    site: Annotated[str, typer.Option(help="The hospital's name, first part of its slides' names.")] = "A",
    index: Annotated[int, typer.Option(help="Which stain and scanner it has, from 0.", min=0)] = 0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same slides.", min=0)] = 0,
    slides: Annotated[int, typer.Option(help="How many slides; half of them with tumour.")] = 30,
    as_json: AsJson = False,
) -> None:
    """Draw a hospital for demos and tests: slides, a manifest, and the truth about every planted tumour nest."""
    from fedpath.cli.output import document
    from fedpath.cli.slides.live import bar
    from fedpath.client.slides.synthetic import make_hospital

    with bar(f"hospital {site}", quiet=as_json) as show:
        make_hospital(
            folder,
            site=site,
            index=index,
            seed=seed,
            slides=slides,
            progress=lambda done, total: show("", done, total),
        )
    if as_json:
        document({"site": site, "folder": folder, "slides": slides})
    else:
        typer.echo(f"{slides} slides of hospital {site}, manifest.csv and truth are in {folder}")
