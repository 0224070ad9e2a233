"""``fedpath slides tissue``: look at what is taken for tissue, and edit it."""

from pathlib import Path
from typing import Annotated

import typer

from fedpath.cli.output import AsJson


def tissue_command(
    slides: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder with slides, searched with subfolders; or a single slide.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for pictures/, masks/ and geojson/.")],
    outlines: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Outlines by people to draw, as in `slides encode`.")
    ] = None,
    slide_mpp: Annotated[
        float | None, typer.Option(help="µm/px of level 0, for slides that state none (0.25 for a 40x scan).")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write masks and GeoJSON anew; by default those there are kept.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Draw the border of tissue on every slide: a picture to look at, a mask to paint on, GeoJSON for QuPath.

    Edited masks or GeoJSON go back in with `fedpath slides encode --outlines`.
    """
    from rich.markup import escape

    from fedpath.cli import output
    from fedpath.cli.slides.live import bar
    from fedpath.client.slides.review import GEOJSON, MASKS, PICTURES, draw_tissue
    from fedpath.core.errors import DataError

    with bar("tissue", quiet=as_json) as progress:
        drawn, bad = draw_tissue(
            slides, out, outlines=outlines, slide_mpp=slide_mpp, overwrite=overwrite, progress=progress
        )
    console = output.console(quiet=as_json)
    for one in drawn:
        none = " [yellow]no tissue[/yellow]" if not one.area_mm2 else ""
        console.print(f"{escape(one.slide_id)}: {one.area_mm2:.1f} mm² of tissue{none}", soft_wrap=True)
    for failed in bad:
        console.print(f"[red]bad[/red] {escape(failed.reason)}\n  remedy: {escape(failed.remedy)}", soft_wrap=True)
    kept = sum(len(one.kept) for one in drawn)
    if kept:
        console.print(
            f"{kept} masks and GeoJSON files were there already and are kept (--overwrite writes them anew)",
            soft_wrap=True,
        )
    if as_json:
        output.document({"drawn": drawn, "bad": bad, "folder": out})
    if not drawn:
        raise DataError(f"no slide could be drawn; the first: {bad[0].reason}", remedy=bad[0].remedy)
    for what, folder in (("look at", PICTURES), ("paint on", MASKS), ("open in QuPath", GEOJSON)):
        console.print(f"{what + ':':<16}{escape(str(out / folder))}", soft_wrap=True)
