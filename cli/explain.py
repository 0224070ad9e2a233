"""``fedpath explain``: pictures of what a trained model looks at."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedpath.cli.examples import examples
from fedpath.cli.output import AsLines

if TYPE_CHECKING:
    from fedpath.client.explain.run import Wanted

app = typer.Typer(
    help="Draw what a trained model looks at, at the hospital, where the pictures stay.",
    no_args_is_help=True,
    epilog=examples(
        "fedpath explain heatmap --model best.safetensors --features features --slides slides --out heatmaps"
    ),
)

_Model = Annotated[Path, typer.Option(metavar="FILE", help="A trained model, for example best.safetensors.")]
_Features = Annotated[Path, typer.Option(help="A feature file, or a folder of them.")]
_Out = Annotated[Path, typer.Option(help="Folder for what is drawn.")]
_Branch = Annotated[
    str,
    typer.Option(help="Whose attention, of models with several branches or heads: mean, a number from 1, or all."),
]


@app.command(
    "heatmap",
    epilog=examples(
        "fedpath explain heatmap --model best.safetensors --features features --slides slides --out heatmaps"
    ),
)
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
    as_json: AsLines = False,
) -> None:
    """Draw a heatmap a slide, over tissue only, with its raw scores beside it as CSV."""
    from fedpath.client.explain.run import Wanted

    _draw(Wanted("heatmap", model, features, out, slides, branch, scores), as_json=as_json)


@app.command(
    "gallery",
    epilog=examples(
        "fedpath explain gallery --model best.safetensors --features features --slides slides --out gallery"
    ),
)
def gallery_command(
    model: _Model,
    features: _Features,
    slides: Annotated[Path, typer.Option(help="The slides the features were made from.")],
    out: _Out,
    branch: _Branch = "mean",
    count: Annotated[int, typer.Option(min=1, help="Patches with most and with least attention, of each.")] = 12,
    as_json: AsLines = False,
) -> None:
    """Cut the patches with most and least attention, and draw them on a sheet with a scale bar."""
    from fedpath.client.explain.run import Wanted

    _draw(Wanted("gallery", model, features, out, slides, branch, count=count), as_json=as_json)


@app.command(
    "geojson",
    epilog=examples("fedpath explain geojson --model best.safetensors --features features/slide-1.h5 --out qupath"),
)
def geojson_command(
    model: _Model, features: _Features, out: _Out, branch: _Branch = "mean", as_json: AsLines = False
) -> None:
    """Write attention as objects for QuPath: a square a patch with its scores, classes by rank."""
    from fedpath.client.explain.run import Wanted

    _draw(Wanted("geojson", model, features, out, branch=branch), as_json=as_json)


def _draw(wanted: "Wanted", *, as_json: bool) -> None:
    """Draw, show how far it is, and say what became of each slide.

    Raises:
        DataError: a slide could not be drawn; the others are.
    """
    from rich.markup import escape

    from fedpath.cli import output
    from fedpath.cli.slides.live import bar
    from fedpath.client.explain.run import draw
    from fedpath.core.errors import DataError

    console, failed, count = output.console(quiet=as_json), [], 0
    with bar(wanted.kind, quiet=as_json) as show:
        for drawn in draw(wanted, show):
            count += 1
            if as_json:
                output.line("drawn" if drawn.files else "not_drawn", **output.plain(drawn))
            if drawn.files:
                where = ", ".join(str(file) for file in drawn.files)
                console.print(f"{escape(drawn.slide_id)}: {escape(drawn.said)}  {escape(where)}", soft_wrap=True)
            else:
                failed.append(drawn)
                console.print(
                    f"[red]not drawn[/red] {escape(drawn.said)}\n  remedy: {escape(drawn.remedy)}", soft_wrap=True
                )
    if as_json:
        output.result(drawn=count - len(failed), not_drawn=len(failed), folder=wanted.out)
    if failed:
        others = "nothing was drawn" if len(failed) == 1 else f"{len(failed)} slides could not be drawn"
        raise DataError(f"{failed[0].slide_id}: {others}; {failed[0].said}", remedy=failed[0].remedy)
