"""``fedpath slides check``: which slides of a folder cannot be encoded, before encoding starts."""

from pathlib import Path
from typing import Annotated

import typer

from fedpath.cli.output import AsJson


def check_command(
    slides: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder with slides, searched with subfolders; or a single slide.")
    ],
    slide_mpp: Annotated[
        float | None, typer.Option(help="µm/px of level 0, for slides that state none (0.25 for a 40x scan).")
    ] = None,
    tiles: Annotated[int, typer.Option(help="Random tiles to read of each level of each slide.", min=1)] = 8,
    as_json: AsJson = False,
) -> None:
    """Open every slide, look at its µm/px and name, read random tiles of every level. Fails if a slide is bad."""
    from collections import Counter
    from dataclasses import asdict

    from rich.markup import escape

    from fedpath.cli import output
    from fedpath.cli.slides.live import bar
    from fedpath.client.slides.check import check_slides
    from fedpath.core.errors import DataError

    with bar("checking", quiet=as_json) as progress:
        checks = check_slides(slides, slide_mpp=slide_mpp, tiles=tiles, progress=progress)
    bad = [check for check in checks if not check.good]
    if as_json:
        output.document([asdict(check) | {"good": check.good} for check in checks])
    else:
        console = output.console()
        for check in bad:
            console.print(f"[red]bad[/red] {escape(check.reason)}\n  remedy: {escape(check.remedy)}", soft_wrap=True)
        good = [check for check in checks if check.good]
        console.print(
            f"{len(good)} of {len(checks)} slides are good; {sum(c.tiles for c in checks)} tiles read", soft_wrap=True
        )
        for mpp, count in sorted(Counter(round(c.mpp, 4) for c in checks if c.mpp is not None).items()):
            console.print(f"  {mpp:g} µm/px: {count}")
        for reader, count in Counter(c.reader for c in checks if c.reader).most_common():
            console.print(f"  {escape(reader)}: {count}")
    if bad:
        raise DataError(
            f"{len(bad)} of {len(checks)} slides cannot be used as they are; the first: {bad[0].reason}",
            remedy=bad[0].remedy,
        )
