"""``fedpath explain``: pictures of what a trained model looks at."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from fedpath.client.explain.run import Wanted

app = typer.Typer(
    help="Pictures of what a trained model looks at; drawn at the hospital, they stay there.", no_args_is_help=True
)

_Model = Annotated[Path, typer.Option(metavar="FILE", help="A trained model, for example best.safetensors.")]
_Features = Annotated[Path, typer.Option(help="A feature file, or a folder of them.")]
_Out = Annotated[Path, typer.Option(help="Folder for what is drawn.")]
_Branch = Annotated[
    str,
    typer.Option(help="Whose attention, of models with several branches or heads: mean, a number from 1, or all."),
]


@app.command("heatmap")
def heatmap_command(
    model: _Model,
    features: _Features,
    out: _Out,
    slides: Annotated[
        Path | None, typer.Option(help="The slides, to draw on; without, patches are drawn on white.")
    ] = None,
    branch: _Branch = "mean",
    scores: Annotated[
        Literal["rank", "raw"], typer.Option(help="Colour by rank within the slide, or by raw attention.")
    ] = "rank",
) -> None:
    """Draw a heatmap a slide, over tissue only, with its raw scores beside it as CSV.

    Example: fedpath explain heatmap --model best.safetensors --features features --slides slides --out heatmaps
    """
    from fedpath.client.explain.run import Wanted

    _draw(Wanted("heatmap", model, features, out, slides, branch, scores))


@app.command("gallery")
def gallery_command(
    model: _Model,
    features: _Features,
    slides: Annotated[Path, typer.Option(help="The slides the features were made from.")],
    out: _Out,
    branch: _Branch = "mean",
    count: Annotated[int, typer.Option(min=1, help="Patches with most and with least attention, of each.")] = 12,
) -> None:
    """Cut the patches with most and least attention, and draw them on a sheet with a scale bar.

    Example: fedpath explain gallery --model best.safetensors --features features --slides slides --out gallery
    """
    from fedpath.client.explain.run import Wanted

    _draw(Wanted("gallery", model, features, out, slides, branch, count=count))


@app.command("geojson")
def geojson_command(model: _Model, features: _Features, out: _Out, branch: _Branch = "mean") -> None:
    """Write attention as objects for QuPath: a square a patch with its scores, classes by rank.

    Example: fedpath explain geojson --model best.safetensors --features features/slide-1.h5 --out qupath
    """
    from fedpath.client.explain.run import Wanted

    _draw(Wanted("geojson", model, features, out, branch=branch))


def _draw(wanted: "Wanted") -> None:
    """Draw, show how far it is, and say what became of each slide.

    Raises:
        DataError: a slide could not be drawn; the others are.
    """
    from rich.console import Console
    from rich.markup import escape

    from fedpath.cli.slides.live import bar
    from fedpath.client.explain.run import draw
    from fedpath.core.errors import DataError

    console, failed = Console(), []
    with bar(wanted.kind) as show:
        for drawn in draw(wanted, show):
            if drawn.files:
                where = ", ".join(str(file) for file in drawn.files)
                console.print(f"{escape(drawn.slide_id)}: {escape(drawn.said)}  {escape(where)}", soft_wrap=True)
            else:
                failed.append(drawn)
                console.print(
                    f"[red]not drawn[/red] {escape(drawn.said)}\n  remedy: {escape(drawn.remedy)}", soft_wrap=True
                )
    if failed:
        others = "nothing was drawn" if len(failed) == 1 else f"{len(failed)} slides could not be drawn"
        raise DataError(f"{failed[0].slide_id}: {others}; {failed[0].said}", remedy=failed[0].remedy)
