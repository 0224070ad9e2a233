"""``fedpath explain``: pictures of what a trained model looks at."""

import typer

app = typer.Typer(
    help="Pictures of what a trained model looks at; drawn at the hospital, they stay there.", no_args_is_help=True
)


@app.callback()
def explain() -> None:
    """Pictures of what a trained model looks at; drawn at the hospital, they stay there."""
