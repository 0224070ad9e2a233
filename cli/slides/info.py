"""``fedpath slides info``: what a slide is and how it is read."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpath.cli.output import AsJson

if TYPE_CHECKING:
    from rich.console import Console

    from fedpath.client.slides.info import SlideInfo


def info_command(
    slides: Annotated[list[Path], typer.Argument(metavar="SLIDE...", help="Slides.")],
    slide_mpp: Annotated[
        float | None, typer.Option(help="µm/px of level 0, for slides that state none (0.25 for a 40x scan).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show format, size, levels, µm/px and how a slide is read.

    Labels, macro images and other header fields are not read: they can carry names. Slides that
    cannot be read are named after the others, and the command ends with an error.
    """
    from fedpath.cli.output import console, document
    from fedpath.client.slides.info import slide_info
    from fedpath.core.errors import DataError

    infos, errors = [], []
    for path in slides:
        try:
            infos.append(slide_info(path, slide_mpp=slide_mpp))
        except DataError as error:
            errors.append(error)
    if as_json:
        document(infos)
    else:
        out = console()
        for info in infos:
            _show(info, out)
    if errors:
        others = f" ({len(errors)} of {len(slides)} slides cannot be read)" if len(errors) > 1 else ""
        raise DataError(f"{errors[0].message}{others}", remedy=errors[0].remedy)


def _show(info: "SlideInfo", console: "Console") -> None:
    from rich.table import Table

    from fedpath.core.report.wording import size

    def line(name: str, value: str) -> None:
        console.print(f"  {name:<11} {value}", markup=False, highlight=False, soft_wrap=True)

    console.print(info.slide_id, style="bold", markup=False, highlight=False)
    line("file", f"{info.path} ({size(info.bytes)})")
    line("format", info.format)
    area = "" if info.size_mm is None else f" ({info.size_mm[0]:.1f} × {info.size_mm[1]:.1f} mm)"
    line("size", f"{info.width} × {info.height} px{area}")
    known = f"{info.mpp:.5g} µm/px, from {info.mpp_from}" if info.mpp is not None else "not stated: give --slide-mpp"
    line("resolution", known)
    line("read as", info.native or f"OpenSlide reads it: {info.why_openslide}")
    table = Table("level", "width", "height", "downsample", "µm/px", box=None, pad_edge=False)
    for number, level in enumerate(info.levels):
        resolution = "" if level.mpp is None else f"{level.mpp:.5g}"
        table.add_row(str(number), str(level.width), str(level.height), f"{level.downsample:.5g}", resolution)
    console.print(table)
