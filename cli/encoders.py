"""``fedpath encoders``: the patch encoders there are."""

import typer

app = typer.Typer(help="Patch encoders: what there is to know about each.", no_args_is_help=True)


@app.callback()
def encoders() -> None:
    """Patch encoders: what there is to know about each."""
