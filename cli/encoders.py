"""``fedpath encoders``: the patch encoders there are, ours and those of other installed packages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedpath.cli.examples import examples
from fedpath.cli.output import AsJson, document

if TYPE_CHECKING:
    from fedpath.core.encoders import EncoderInfo

app = typer.Typer(
    help="List patch encoders, and show what there is to know about each.",
    no_args_is_help=True,
    epilog=examples("fedpath encoders list", "fedpath encoders show uni_v2"),
)


@app.command("list", epilog=examples("fedpath encoders list", "fedpath encoders list --json"))
def list_encoders(as_json: AsJson = False) -> None:
    """List every encoder that --encoder, or features.encoder in federation.toml, can name.

    Encoders of other packages are listed by what their metadata says: nothing of them is imported.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fedpath.core.encoders import available
    from fedpath.core.encoders.own import own_encoders

    if as_json:
        own_names = [{"name": own.name, "package": own.origin, "target": own.target} for own in own_encoders()]
        document([_facts(info) for info in available()] + own_names)
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("name", no_wrap=True, style="bold")
    table.add_column("width", no_wrap=True, justify="right")
    table.add_column("patch", no_wrap=True, justify="right")
    table.add_column("what it is; its weights and their licence")
    for info in available():
        lines = [f"{info.architecture}: {info.summary}", f"{_weights(info)} · {info.licence}"]
        text = Text("\n").join([Text(lines[0]), Text(lines[1], "dim")])
        table.add_row(info.name, str(info.width), f"{info.patch_px} px" if info.patch_px else "any", text)
    for own in own_encoders():
        text = Text("\n").join(
            [Text("own encoder of an installed package"), Text(f"{own.target} of {own.origin}", "dim")]
        )
        table.add_row(own.name, "–", "–", text)
    console = Console()
    console.print(table)
    console.print("\nAll about one: fedpath encoders show NAME")


@app.command(epilog=examples("fedpath encoders show uni_v2", "fedpath encoders show resnet50 --json"))
def show(
    name: Annotated[str, typer.Argument(help="A name of `fedpath encoders list`, or another name of the same.")],
    as_json: AsJson = False,
) -> None:
    """Show one encoder: its input, its features, where its weights come from and under which licence."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fedpath.core.encoders import blank_encoder, info_of

    info = info_of(name)
    count = sum(parameter.numel() for parameter in blank_encoder(name).parameters())
    if as_json:
        document({**_facts(info), "parameters": count})
        return
    patch = f"{info.patch_px} px, never resized" if info.patch_px else "any from 16 px"
    facts = {
        "other names": ", ".join(info.aliases),
        "architecture": info.architecture,
        "parameters": f"{count:,}",
        "features": f"{info.width}: {info.summary}",
        "patch": patch + (f", commonly at {info.mpp:g} µm/px" if info.mpp else ""),
        "colours": info.transform,
        "weights": _weights(info),
        "from": info.source,
        "their licence": info.licence,
        "use": _command(info),
    }
    heading = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for fact, text in facts.items():
        if text:
            heading.add_row(fact, Text(text))
    console = Console()
    console.print(f"[bold]{info.name}[/bold]", highlight=False)
    console.print(heading, highlight=False)


def _weights(info: EncoderInfo) -> str:
    """Say in words how an encoder gets its weights."""
    if not info.needs_weights:
        return "come with it"
    return "a file, given to who accepts the terms" if info.gated else "a file"


def _command(info: EncoderInfo) -> str:
    """Return how slides are encoded with it."""
    weights = " --weights FILE" if info.needs_weights else ""
    patch = info.patch_px or 224
    return (
        f"fedpath slides encode SLIDES --out FEATURES --encoder {info.name}{weights} "
        f"--mpp {info.mpp or 0.5:g} --patch {patch}"
    )


def _facts(info: EncoderInfo) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(info)
