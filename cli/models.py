"""``fedpath models``: the bag models that can be trained, ours and those of other installed packages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedpath.cli.examples import examples
from fedpath.cli.output import AsJson, document

if TYPE_CHECKING:
    from fedpath.core.models.own import OwnModel
    from fedpath.core.models.registry import ModelInfo

app = typer.Typer(
    help="List the bag models that can be trained, and show their options.",
    no_args_is_help=True,
    epilog=examples("fedpath models list", "fedpath models show longmil"),
)

Width = Annotated[int, typer.Option(help="Feature width for which parameters are counted.", min=1, max=65536)]
Classes = Annotated[int, typer.Option(help="Number of labels, likewise.", min=2, max=1000)]


@app.command("list", epilog=examples("fedpath models list", "fedpath models list --width 1536 --classes 3"))
def list_models(width: Width = 1024, classes: Classes = 2, as_json: AsJson = False) -> None:
    """List every model that model.name of federation.toml can pick, with its size and what it needs.

    Models of other packages are listed by what their metadata says: nothing of them is imported.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fedpath.core.models.own import own_models
    from fedpath.core.models.registry import available_models, count_parameters

    if as_json:
        counts = {info.name: count_parameters(info.name, width=width, n_classes=classes) for info in available_models()}
        document(
            [_facts(info) | {"parameters": counts[info.name]} for info in available_models()]
            + [{"name": own.name, "package": own.origin, "target": own.target} for own in own_models()]
        )
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("name", no_wrap=True, style="bold")
    table.add_column("parameters", no_wrap=True, justify="right")
    table.add_column("what it is; its source; what of a slide it needs")

    def add(name: str, parameters: str, *lines: str) -> None:
        # Below each other: side by side, five columns break into single words on a terminal of eighty.
        table.add_row(name, parameters, Text("\n").join([Text(lines[0]), *(Text(line, "dim") for line in lines[1:])]))

    for info in available_models():
        count = count_parameters(info.name, width=width, n_classes=classes)
        marked = f"{count:,}{'*' if info.uses_clinical else ''}"
        add(info.name, marked, info.summary, f"{info.source} · needs {info.needs}")
    for own in own_models():
        add(own.name, "–", "own model of an installed package", f"{own.target} of {own.origin}")
    console = Console()
    console.print(table)
    console.print(f"\nParameters are those of {width} features and {classes} labels (--width, --classes).")
    console.print(f"* with clinical data of {_nominal()}; federation.toml declares what it is really built for.")
    console.print("The options of a model: fedpath models show NAME")


@app.command(epilog=examples("fedpath models show longmil", "fedpath models show bd --json"))
def show(
    name: Annotated[str, typer.Argument(help="A name of `fedpath models list`.")],
    width: Width = 1024,
    classes: Classes = 2,
    as_json: AsJson = False,
) -> None:
    """Show one model and the options that model.options of federation.toml can set.

    A model of another package is imported, built and tried on two small bags: what is wrong with it is said here.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fedpath.core.models.own import find_own
    from fedpath.core.models.registry import NOMINAL_CLINICAL, available_models, build_model

    info = next((info for info in available_models() if info.name == name), None)
    own = find_own(name)
    table = Table("option", "default", "", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    required = False
    if info is None and own is not None:
        facts = {"own model": own.target, "source": f"package {own.origin}"}
        required = _add_options(table, own)
    else:
        facts = {} if info is None else {"what it is": info.summary, "source": info.source, "needs": info.needs}
        for option in () if info is None else info.options:
            default = "auto" if option.default is None else str(option.default)
            table.add_row(option.name, default, option.description)
    if required:
        parameters = None
    else:
        model = build_model(name, width=width, n_classes=classes, seed=0, clinical=NOMINAL_CLINICAL)
        parameters = sum(parameter.numel() for parameter in model.parameters())
    if as_json:
        known = _facts(info) if info is not None else _facts_of_own(name, own)
        document(known | {"parameters": parameters, "width": width, "classes": classes})
        return
    count = "known once the required options are set" if parameters is None else f"{parameters:,}"
    clinical = f", clinical data of {_nominal()}" if info is not None and info.uses_clinical else ""
    facts["parameters"] = f"{count} ({width} features, {classes} labels{clinical})"
    console = Console()
    heading = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for fact, text in facts.items():
        heading.add_row(fact, Text(text))
    console.print(f"[bold]{name}[/bold]")
    console.print(heading)
    console.print()
    console.print(table if table.row_count else "It has no options.")


def _nominal() -> str:
    """Say for which clinical fields models are built and counted here, where no federation declares any."""
    from fedpath.core.models.registry import NOMINAL_CLINICAL

    return ", ".join(f"a {field.type}" for field in NOMINAL_CLINICAL.fields.values())


def _add_options(table: Any, own: OwnModel) -> bool:
    """Add the options of an own model; return whether one of them has no default."""
    from inspect import Parameter

    from fedpath.core.models.own import options_of

    options = options_of(own)
    for option, default in options.items():
        table.add_row(option, "required" if default is Parameter.empty else str(default), "")
    return Parameter.empty in options.values()


def _facts(info: ModelInfo) -> dict[str, Any]:
    """Return what is known of a model of ours, as JSON."""
    options = [
        {"name": option.name, "default": option.default, "description": option.description} for option in info.options
    ]
    return {
        "name": info.name,
        "summary": info.summary,
        "source": info.source,
        "needs": info.needs,
        "uses_clinical": info.uses_clinical,
        "options": options,
    }


def _facts_of_own(name: str, own: OwnModel | None) -> dict[str, Any]:
    """Return what is known of a model of another package, as JSON."""
    from inspect import Parameter

    from fedpath.core.models.own import options_of

    options = [] if own is None else options_of(own).items()
    return {
        "name": name,
        "package": own and own.origin,
        "target": own and own.target,
        "options": [
            {"name": option, "required": True}
            if default is Parameter.empty
            else {"name": option, "default": str(default)}
            for option, default in options
        ],
    }
