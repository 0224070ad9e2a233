"""The options of ``fedpath train``; what they start is in ``run``, which is imported only when it is wanted."""

from pathlib import Path
from typing import Annotated

import typer

from fedpath.cli.examples import examples
from fedpath.cli.output import AsLines

EXAMPLES = examples(
    "fedpath train --config federation.toml --site A/site.toml --out A/alone",
    "fedpath train --config federation.toml --site A/site.toml --site B/site.toml --out pooled --folds 5",
)


def train_command(
    config: Annotated[Path, typer.Option(help="federation.toml: model, labels, features, training.")],
    site: Annotated[list[Path], typer.Option(help="site.toml of a hospital; several are trained on as one.")],
    out: Annotated[Path, typer.Option(help="Folder for the models, metrics.json, predictions.csv and pictures.")],
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the training and of the folds; the federation's by default.", min=0, max=2**32 - 1),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(help="Cross-validate: every patient is tested once, by a model trained on the others.", min=2),
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write curves to OUT/tensorboard.")] = False,
    mlflow: Annotated[
        str | None, typer.Option(help="Send curves to this MLflow: http://HOST:PORT or sqlite:///FILE.", metavar="URI")
    ] = None,
    as_json: AsLines = False,
) -> None:
    """Train without a federation: one hospital alone, or pooled data.

    The same initialisation, loop and number of epochs (rounds × local epochs) as the federation's; validated every
    local_epochs, and the best model by validation is kept beside the last. With training.patience it may end early.
    """
    from fedpath.cli.train.run import run

    run(config, site, out, seed=seed, folds=folds, tensorboard=tensorboard, mlflow=mlflow, as_json=as_json)
