"""``fedpath models``: the bag models that can be trained."""

import typer

app = typer.Typer(help="Bag models that can be trained.", no_args_is_help=True)


@app.callback()
def models() -> None:
    """Bag models that can be trained."""


@app.command("list")
def list_models() -> None:
    """List every bag model with its options, as [model] of federation.toml names them."""
    from rich.console import Console
    from rich.table import Table

    from fedpath.core.models.registry import available_models

    console = Console()
    for model in available_models():
        console.print(f"[bold]{model.name}[/bold]  {model.summary}  [dim]({model.source})[/dim]")
        table = Table("option", "default", "", box=None, padding=(0, 2))
        for option in model.options:
            default = "auto" if option.default is None else str(option.default)
            table.add_row(option.name, default, option.description)
        console.print(table)
