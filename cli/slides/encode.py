"""``fedpath slides encode``: from slides to features."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedpath.cli.output import AsLines

if TYPE_CHECKING:
    from fedpath.client.slides.crew import Crew
    from fedpath.client.slides.outcome import EncodeReport


def encode_command(
    slides: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder with slides, searched with subfolders; or a single slide.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the feature files, <slide_id>.h5.")],
    encoder: Annotated[str, typer.Option(help="Encoder by name.")] = "seeded-conv",
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The encoder's weights: for encoders that come without, or a tuned encoder (encoder.safetensors).",
        ),
    ] = None,
    mpp: Annotated[float, typer.Option(help="Resolution of the patches, µm/px.")] = 0.5,
    patch: Annotated[int, typer.Option(help="Edge of a patch in pixels at --mpp.")] = 256,
    slide_mpp: Annotated[
        float | None, typer.Option(help="µm/px of level 0, for slides that state none (0.25 for a 40x scan).")
    ] = None,
    outlines: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Outlines of tissue by people, <slide_id>.geojson (QuPath) or an edited mask <slide_id>.png; slides "
            "without are searched for tissue.",
        ),
    ] = None,
    max_failed: Annotated[
        float, typer.Option(help="Share of unreadable patches beyond which a slide is quarantined.")
    ] = 0.5,
    batch: Annotated[int, typer.Option(help="Patches that are encoded at a time.")] = 64,
    readers: Annotated[int | None, typer.Option(help="Threads that read patches; by default up to 8.")] = None,
    threads: Annotated[int, typer.Option(help="Threads of the encoder on a CPU.")] = 1,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where the encoder runs; auto: on a GPU if there is one.")
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option(help="Processes with a device each, by Ray; by default one for each GPU here.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Ray cluster on which the workers run; 'local' starts one here."),
    ] = None,
    as_json: AsLines = False,
) -> None:
    """Find tissue, cut patches by exact µm/px, encode them; one feature file a slide.

    Interrupted or repeated, the run takes up where it was: a slide is skipped if its feature file is whole and was made
    from the same slide with the same settings. A slide that cannot be encoded is listed with its reason.
    """
    from fedpath.cli import output
    from fedpath.cli.slides.progress import shown
    from fedpath.client.slides.encode import encode_folder
    from fedpath.client.slides.settings import EncodeSettings
    from fedpath.core.errors import DataError

    settings = EncodeSettings(
        mpp,
        patch,
        slide_mpp,
        outlines,
        max_failed=max_failed,
        batch=batch,
        readers=readers if readers is not None else min(8, os.cpu_count() or 1),
        threads=threads,
    )
    where = _device(device)
    with shown(as_json=as_json) as show:
        report = encode_folder(
            slides,
            out,
            settings,
            encoder=encoder,
            weights=weights,
            device=where,
            crew=_crew(ray, workers, where),
            progress=show,
        )
    if as_json:
        output.result(**output.plain(report), folder=out)
    else:
        _show(report, out)
    if not report.done and not report.skipped:
        first = report.quarantined[0]
        raise DataError(f"no slide could be encoded; the first: {first.reason}", remedy=first.remedy)


def _device(wanted: Literal["auto", "cpu", "cuda"]) -> str:
    """Return "cpu" or "cuda".

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    from fedpath.core.errors import ConfigError
    from fedpath.core.training.device import choose_device

    try:
        return choose_device(wanted)
    except ConfigError:
        raise ConfigError(
            f"--device {wanted}: torch finds no GPU",
            remedy="install a CUDA build of torch and the driver, or give --device cpu",
        ) from None


def _crew(ray: str | None, workers: int | None, device: str) -> "Crew | None":
    """Return who encodes, None for this process alone.

    Raises:
        ConfigError: no worker.
    """
    from fedpath.client.slides.crew import Crew
    from fedpath.core.cluster import LOCAL
    from fedpath.core.errors import ConfigError

    if workers is not None and workers < 1:
        raise ConfigError(f"--workers is {workers}", remedy="give at least 1")
    if workers is None:
        workers = _gpus() if device == "cuda" else 1
    if ray is None and workers == 1:
        return None
    return Crew(ray or LOCAL, workers, device)


def _gpus() -> int:
    """Return how many GPUs torch finds here."""
    import torch

    return max(1, torch.cuda.device_count())


def _show(report: "EncodeReport", out: Path) -> None:
    """Print what became of the slides."""
    from rich.markup import escape
    from rich.table import Table

    from fedpath.cli import output
    from fedpath.client.slides.encode import REPORT
    from fedpath.client.slides.page import PAGE

    console = output.console()
    there = report.done + report.skipped
    table = Table(title="slides to features")
    for heading in ("", "slides", "patches", "unreadable patches", "µm/px of level 0"):
        table.add_column(heading, justify="left" if heading == "" else "right")
    for name, results in (("encoded", report.done), ("already there", report.skipped)):
        patches, failed = sum(result.patches for result in results), sum(result.failed for result in results)
        resolutions = ", ".join(f"{mpp:g}" for mpp in sorted({round(result.mpp_level0, 4) for result in results}))
        table.add_row(name, str(len(results)), str(patches), str(failed), resolutions)
    table.add_row("quarantined", str(len(report.quarantined)), "", "", "")
    console.print(table)
    for bad in report.quarantined:
        console.print(f"[red]quarantined[/red] {escape(bad.reason)}\n  remedy: {escape(bad.remedy)}", soft_wrap=True)
    for result in there:
        if result.failed:
            said = f"{escape(result.slide_id)}: {result.failed} patches could not be read and are left out"
            console.print(f"[yellow]partly unreadable[/yellow] {said}", soft_wrap=True)
    if report.ignored:
        console.print(f"{len(report.ignored)} other files were ignored (listed in {REPORT})")
    reports = f"report:   {out / PAGE}, for programs {REPORT}"
    console.print(f"features: {out}\n{reports}", soft_wrap=True, highlight=False)
