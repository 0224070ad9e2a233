"""``fedpath cohort``: check a hospital's cohort, or make one from data that does not come from slides."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fedpath.cli.examples import examples
from fedpath.cli.output import AsJson

app = typer.Typer(
    help="Check a hospital's cohort, or make one from a table.",
    no_args_is_help=True,
    epilog=examples("fedpath cohort check --config federation.toml --site site.toml"),
)


@app.command(
    "from-table",
    epilog=examples(
        "fedpath cohort from-table musk1.csv --out cohort",
        "fedpath cohort from-table musk1.csv --out sites --sites A,B,C",
    ),
)
def from_table(
    table: Annotated[Path, typer.Argument(help="CSV, one instance a row: label, bag, features.")],
    out: Annotated[Path, typer.Option(help="Folder for manifest.csv and features/.")],
    sites: Annotated[str, typer.Option(help="Deal the bags to these hospitals, e.g. A,B,C: OUT/A, OUT/B, OUT/C.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the deal.", min=0)] = 0,
    header: Annotated[bool, typer.Option("--header", help="The first row names the columns.")] = False,
    label_column: Annotated[str, typer.Option(help="Column of the label: its name, or its number from 1.")] = "1",
    bag_column: Annotated[str, typer.Option(help="Column of the bag: its name, or its number from 1.")] = "2",
    as_json: AsJson = False,
) -> None:
    """Turn a table of bags into a cohort: a manifest and a feature file a bag."""
    from collections import Counter

    from fedpath.cli.output import document
    from fedpath.core.cohort.table import cohort_from_table

    names = [name.strip() for name in sites.split(",") if name.strip()]
    folders = cohort_from_table(
        table, out, sites=names, seed=seed, header=header, label_column=label_column, bag_column=bag_column
    )
    made: list[dict[str, Any]] = [
        {
            "folder": folder,
            "bags": len(bags),
            "labels": dict(sorted(Counter(bag.label for bag in bags).items())),
            "instances": sum(len(bag.features_ND) for bag in bags),
            "width": bags[0].features_ND.shape[1],
        }
        for folder, bags in folders.items()
    ]
    if as_json:
        document(made)
        return
    for one in made:
        labels = ", ".join(f"{count} × {label}" for label, count in one["labels"].items())
        typer.echo(
            f"{one['folder']}: {one['bags']} bags ({labels}), {one['instances']} instances of width {one['width']}"
        )


@app.command(
    "check",
    epilog=examples(
        "fedpath cohort check --config federation.toml --site site.toml",
        "fedpath cohort check --config federation.toml --site site.toml --json",
    ),
)
def check_command(
    config: Annotated[Path, typer.Option(help="federation.toml: labels and clinical fields.")],
    site: Annotated[Path, typer.Option(help="site.toml: manifest, clinical table and how its columns are mapped.")],
    as_json: AsJson = False,
) -> None:
    """Count what a run would read: slides and patients by split and label, clinical data a field at a time.

    Features are not opened. Counts name no patient; an error may, and stays on this screen.
    """
    from fedpath.cli.check import check, show
    from fedpath.cli.output import document
    from fedpath.core.config import load_federation, load_site

    federation = load_federation(config)
    report, clinical = check(federation, load_site(site))
    if as_json:
        document(report)
    else:
        show(report, federation, clinical)
