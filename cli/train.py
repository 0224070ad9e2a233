"""``fedpath train``: one hospital alone, or the pooled data of several, with a federation's settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedpath.core.cohort.examples import Example
    from fedpath.core.cohort.manifest import Split
    from fedpath.core.config import FederationConfig, SiteConfig
    from fedpath.core.training.alone import AloneResult, Validated


def train_command(
    config: Annotated[Path, typer.Option(help="federation.toml: model, labels, features, training.")],
    site: Annotated[list[Path], typer.Option(help="site.toml of a hospital; several are trained on as one.")],
    out: Annotated[Path, typer.Option(help="Folder for best.safetensors, last.safetensors and metrics.json.")],
    seed: Annotated[int | None, typer.Option(help="Seed of the training; the federation's by default.", min=0)] = None,
) -> None:
    """Train without a federation: one hospital alone, or pooled data.

    The same initialisation, loop and number of epochs (rounds × local epochs) as the federation's; validated every
    local_epochs, and the best model by validation is kept beside the last.
    """
    import torch
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from fedpath.core.config import load_federation, load_site
    from fedpath.core.training.alone import train_alone
    from fedpath.core.training.device import choose_device

    federation = load_federation(config)
    sites = [load_site(path) for path in site]
    _check_features(federation, sites)
    examples = _pool(federation, sites)
    compute = sites[0].compute
    device = choose_device(compute.device)
    torch.set_num_threads(compute.threads)
    names = ", ".join(one.site.name for one in sites)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("bags"), TimeRemainingColumn()
    ) as bar:
        task = bar.add_task(names, total=None)

        def show(done: int, total: int, loss: float) -> None:
            bar.update(task, completed=done, total=total)

        def show_validation(result: Validated) -> None:
            bar.update(task, description=f"{names}: {_line(result)}")

        result = train_alone(
            federation,
            examples["train"],
            examples["validation"],
            seed=federation.federation.seed if seed is None else seed,
            device=device,
            progress=show,
            validated=show_validation,
        )
    _save(federation, [one.site.name for one in sites], result, examples["test"], out)


def _check_features(federation: FederationConfig, sites: Sequence[SiteConfig]) -> None:
    """Refuse to mix features that were made differently: results would differ for no visible reason."""
    from fedpath.client.agent.contract import contract_of
    from fedpath.core.cohort import load_site_cohort
    from fedpath.core.errors import DataError
    from fedpath.core.exchange.contract import differences, disagreements

    stated = {}
    for site in sites:
        slides = load_site_cohort(site, federation.task.labels).slides
        stated[site.site.name] = contract_of(
            [site.data.features / f"{slide.slide_id}.h5" for slide in slides], site.features
        )
    wrong = {name: "; ".join(differences(federation.features, contract)) for name, contract in stated.items()}
    wrong = {name: reason for name, reason in wrong.items() if reason} or disagreements(stated)
    for name, reason in wrong.items():
        raise DataError(f"site {name}: {reason}", remedy="encode its slides with the federation's settings")


def _pool(federation: FederationConfig, sites: Sequence[SiteConfig]) -> dict[Split, list[Example]]:
    """Return the examples of all sites by split; patients of different hospitals stay different people."""
    from dataclasses import replace

    from fedpath.core.cohort import load_site_examples

    pooled: dict[Split, list[Example]] = {"train": [], "validation": [], "test": []}
    for site in sites:
        for split, examples in load_site_examples(site, federation).items():
            pooled[split] += [
                replace(example, patient_id=f"{site.site.name}:{example.patient_id}") for example in examples
            ]
    return pooled


def _save(federation: FederationConfig, sites: list[str], result: AloneResult, test: list[Example], out: Path) -> None:
    """Write both models and the metrics; the test slides are looked at here, once, with the best model."""
    import dataclasses

    from fedpath.core.files import write_json
    from fedpath.core.models.checkpoint import model_metadata, save_model
    from fedpath.core.training import bootstrap_auc, evaluate, predict
    from fedpath.core.training.alone import initial_model

    metadata = model_metadata(
        federation.federation.name, federation.model, federation.features, federation.task.labels
    ) | {"trained_on": ",".join(sites)}
    epochs = federation.training.rounds * federation.training.local_epochs
    save_model(out / "best.safetensors", result.best_state, metadata | {"epoch": str(result.best_epoch)})
    save_model(out / "last.safetensors", result.last_state, metadata | {"epoch": str(epochs)})
    report: dict[str, Any] = {
        "sites": sites,
        "best_epoch": result.best_epoch,
        "history": [dataclasses.asdict(entry) for entry in result.history],
        "test": None,
    }
    if test:
        model = initial_model(federation)
        model.load_state_dict(result.best_state)
        interval = bootstrap_auc(
            [example.target for example in test],
            predict(model, [example.bag for example in test]),
            [example.patient_id for example in test],
            seed=federation.federation.seed,
        )
        report["test"] = dataclasses.asdict(evaluate(model, test)) | {
            "auc_interval": dataclasses.asdict(interval) if interval else None
        }
        if interval:
            typer.echo(f"test AUC {interval.value:.3f} (95 % CI {interval.low:.3f}–{interval.high:.3f})")
    write_json(out / "metrics.json", report)
    typer.echo(f"best of epoch {result.best_epoch} and last of epoch {epochs} are in {out}")


def _line(result: Validated) -> str:
    """Return one validation as a short text."""
    if result.validation is None:
        return f"epoch {result.epoch}, loss {result.train_loss:.3f}"
    auc = "–" if result.validation.auc is None else f"{result.validation.auc:.3f}"
    return f"epoch {result.epoch}, loss {result.train_loss:.3f}, validation AUC {auc}"
