"""``fedpath recipes``: commented federation.toml files that work, one a method, to begin with."""

from pathlib import Path
from typing import Annotated

import typer

from fedpath.cli.complete import recipe_names
from fedpath.cli.examples import examples
from fedpath.cli.output import AsJson, console, document

app = typer.Typer(
    help="List, show and write recipes: a commented federation.toml for each method.",
    epilog=examples("fedpath recipes", "fedpath recipes write acmil --out federation.toml"),
)

Name = Annotated[str, typer.Argument(help="A name of `fedpath recipes`.", autocompletion=recipe_names)]


@app.callback(invoke_without_command=True)
def recipes_command(context: typer.Context, as_json: AsJson = False) -> None:
    """List, show and write recipes: a commented federation.toml for each method."""
    if context.invoked_subcommand is None:
        list_recipes(as_json)
    elif as_json:
        raise typer.BadParameter("goes behind the command it is for", context, param_hint="--json")


@app.command("list", epilog=examples("fedpath recipes list", "fedpath recipes list --json"))
def list_recipes(as_json: AsJson = False) -> None:
    """List the recipes and what each is for."""
    from fedpath.core.recipes import recipes

    if as_json:
        document([{"name": one.name, "title": one.title, "summary": one.summary} for one in recipes()])
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 1, 0), pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for one in recipes():
        table.add_row(one.name, Text("\n").join([Text(one.title), Text(one.summary, "dim")]))
    out = console()
    out.print(table)
    out.print("Begin with one: fedpath recipes write NAME --out federation.toml")


@app.command("show", epilog=examples("fedpath recipes show bd", "fedpath recipes show vib --json"))
def show_recipe(name: Name, as_json: AsJson = False) -> None:
    """Print a recipe as it is."""
    from fedpath.core.recipes import find_recipe

    recipe = find_recipe(name)
    if as_json:
        document(recipe)
    else:
        typer.echo(recipe.text, nl=False)


@app.command(
    "write",
    epilog=examples(
        "fedpath recipes write acmil --out federation.toml", "fedpath recipes write bd --out breast/federation.toml"
    ),
)
def write_recipe(
    name: Name,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file to write; it must not be there yet.")] = Path(
        "federation.toml"
    ),
    as_json: AsJson = False,
) -> None:
    """Write a recipe to a file, to be edited; `fedpath init` asks for the names first."""
    from fedpath.cli.init.files import write_new
    from fedpath.core.recipes import find_recipe

    recipe = find_recipe(name)
    write_new(out, recipe.text)
    if as_json:
        document({"recipe": recipe.name, "path": out})
    else:
        typer.echo(f"wrote {out}: {recipe.title}")
        typer.echo(f"edit it, then try it here: fedpath simulate --config {out} --sites 3")
