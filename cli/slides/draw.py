"""``fedpath slides draw``: a drawn hospital to try things on."""

from pathlib import Path
from typing import Annotated

import typer


def draw_command(
    folder: Annotated[Path, typer.Argument(help="The hospital's folder; made if need be.")],
    site: Annotated[str, typer.Option(help="The hospital's name, first part of its slides' names.")] = "A",
    index: Annotated[int, typer.Option(help="Which stain and scanner it has, from 0.", min=0)] = 0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same slides.", min=0)] = 0,
    slides: Annotated[int, typer.Option(help="How many slides; half of them with tumour.")] = 30,
) -> None:
    """Draw a hospital for demos and tests: slides, a manifest, and the truth about every planted tumour nest."""
    from rich.progress import Progress

    from fedpath.client.slides.synthetic import make_hospital

    with Progress() as live:
        task = live.add_task(f"hospital {site}", total=slides)
        make_hospital(
            folder,
            site=site,
            index=index,
            seed=seed,
            slides=slides,
            progress=lambda done, _total: live.update(task, completed=done),
        )
