"""``fedpath client plan``: how this hospital's GPU would take part in fine-tuning, and what it would need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fedpath.cli.examples import examples
from fedpath.cli.output import AsJson

if TYPE_CHECKING:
    from rich.table import Table

    from fedpath.core.config import SiteConfig
    from fedpath.core.config.model import ModelSection
    from fedpath.core.config.stages import TuningSection
    from fedpath.core.tuning.plan import Lever, Plan

EXAMPLES = examples(
    "fedpath client plan --config site.toml",
    "fedpath client plan --config site.toml --federation federation.toml",
    "fedpath client plan --config site.toml --encoder uni_v2 --patches 256 --adapter lora",
)
# As [[stage]] of federation.toml has them.
_DEFAULTS: dict[str, str | int] = {
    "encoder": "resnet50-layer4",
    "patches": 512,
    "least": 64,
    "patch": 224,
    "head": "clam-sb",
    "adapter": "none",
}


def plan(
    config: Annotated[Path, typer.Option(help="This hospital's site.toml; it is planned for the device it names.")],
    federation: Annotated[
        Path | None, typer.Option(help="federation.toml with a stage of kind fine-tune; or say what is trained below.")
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="Encoder by name.", show_default="resnet50-layer4")] = None,
    patches: Annotated[int | None, typer.Option(min=1, help="Most patches of a slide.", show_default="512")] = None,
    least: Annotated[int | None, typer.Option(min=1, help="Fewest patches of a slide.", show_default="64")] = None,
    patch: Annotated[int | None, typer.Option(min=1, help="Edge of a patch in pixels.", show_default="224")] = None,
    head: Annotated[str | None, typer.Option(help="Bag model on top.", show_default="clam-sb")] = None,
    adapter: Annotated[str | None, typer.Option(help="none, or lora for transformers.", show_default="none")] = None,
    as_json: AsJson = False,
) -> None:
    """Plan fine-tuning inside this hospital's memory, before a federation asks for it: nothing is trained or read.

    The plan decides how many patches of a slide are learned from, how many pass through the encoder at a time,
    and what is computed twice instead of kept.
    """
    from fedpath.cli.output import document
    from fedpath.core.config import load_site
    from fedpath.core.tuning.budget import budget_of
    from fedpath.core.tuning.plan import plan_memory

    site = load_site(config)
    given = {"encoder": encoder, "patches": patches, "least": least, "patch": patch, "head": head, "adapter": adapter}
    stated = {name: value for name, value in given.items() if value is not None}
    task = _task_of(stated) if federation is None else _task_in(federation, stated)
    device, note = _device(config, site)
    found = plan_memory(
        task.encoder,
        task.head,
        task.tuning,
        n_classes=task.n_classes,
        patch_px=task.patch_px,
        # A card that is not here cannot be asked for its size; `_device` saw to it that the site states one.
        budget_bytes=int((site.compute.vram_gb or 0) * 10**9) if note else budget_of(site.compute, device),
        device=device,
        precision=_precision(site, device, here=not note),
        engine=site.compute.engine,
        accumulate_bags=task.accumulate_bags,
        drift_copies=task.drift_copies,
    )
    if as_json:
        document(_facts(task, found, note))
    else:
        _show(task, found, note)


@dataclass(frozen=True, slots=True)
class _Task:
    """What is to be trained."""

    encoder: str
    head: ModelSection
    tuning: TuningSection
    n_classes: int
    patch_px: int
    accumulate_bags: int = 1
    drift_copies: int = 0


def _task_of(stated: dict[str, str | int]) -> _Task:
    """Return what the options say."""
    from pydantic import ValidationError

    from fedpath.core.config.model import ModelSection
    from fedpath.core.config.stages import TuningSection
    from fedpath.core.errors import ConfigError

    values = _DEFAULTS | stated
    if "least" not in stated:
        values["least"] = min(int(values["least"]), int(values["patches"]))
    try:
        bounds = {"most": values["patches"], "least": values["least"]}
        tuning = TuningSection.model_validate({"patches": bounds, "adapter": values["adapter"]})
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = "--adapter" if "adapter" in fault["loc"] else "--patches, --least"
        reason = fault["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{where}: {reason}", remedy="correct it, or leave it out") from None
    head = ModelSection(name=str(values["head"]))
    return _Task(str(values["encoder"]), head, tuning, n_classes=2, patch_px=int(values["patch"]))


def _task_in(path: Path, stated: dict[str, str | int]) -> _Task:
    """Return what the fine-tune stage of a federation.toml says."""
    from fedpath.core.config import load_federation
    from fedpath.core.errors import ConfigError
    from fedpath.core.training.drift import copies_of

    if stated:
        names = ", ".join(f"--{name}" for name in stated)
        raise ConfigError(
            f"{names} and --federation both say what is trained", remedy="give --federation, or the other options"
        )
    federation = load_federation(path)
    stage = next((stage for stage in federation.stage if stage.kind == "fine-tune"), None)
    if stage is None:
        raise ConfigError(
            f"{path}: no stage of kind 'fine-tune' to plan for",
            remedy="name a federation that fine-tunes its encoder, or say what would be trained: --encoder …",
        )
    if federation.features.patch_px is None:
        raise ConfigError(
            f"{path}: key 'features.patch_px' is missing: the encoder's input has no size",
            remedy="state the edge of a patch in pixels",
        )
    return _Task(
        federation.features.encoder,
        stage.model,
        stage.tuning,
        n_classes=len(federation.task.labels),
        patch_px=federation.features.patch_px,
        accumulate_bags=stage.training.over(federation.training).accumulate_bags,
        drift_copies=copies_of(federation.local),
    )


def _device(path: Path, site: SiteConfig) -> tuple[str, str]:
    """Return the device to plan for, and a note where it is not this machine's."""
    import torch

    from fedpath.core.training.device import choose_device

    if site.compute.device == "cuda" and not torch.cuda.is_available() and site.compute.vram_gb is not None:
        return "cuda", f"There is no GPU here: planned for one with the memory that {path.name} states."
    return choose_device(site.compute.device), ""


def _precision(site: SiteConfig, device: str, *, here: bool) -> Literal["float32", "bfloat16"]:
    from fedpath.core.training.precision import choose_precision

    if here:
        return choose_precision(site.compute.precision, device)
    # Which types it is fast in is not known of a GPU that is not here; the larger one is safe.
    return "bfloat16" if site.compute.precision == "bfloat16" else "float32"


def _facts(task: _Task, plan: Plan, note: str) -> dict[str, Any]:
    """Return the choice and what it needs, as JSON; sizes in bytes."""
    return {
        "encoder": task.encoder,
        "head": task.head.name,
        "patch_px": task.patch_px,
        "note": note,
        "choice": plan.choice,
        "operations": plan.compute,
        "predicted_bytes": plan.parts,
        "peak_bytes": plan.peak_bytes,
        "budget_bytes": plan.budget_bytes,
        "means": plan.levers,
    }


def _show(task: _Task, plan: Plan, note: str) -> None:
    """Print the choice, what it needs and what each means saved."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console, choice = Console(), plan.choice
    adapter = ", adapters only" if task.tuning.adapter == "lora" else ""
    trained = f"{task.encoder}{adapter}, head {task.head.name}, patches of {task.patch_px} px"
    console.print(f"[bold]{escape(trained)}[/bold]", highlight=False)
    if note:
        console.print(note, highlight=False)
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    facts.add_row(
        "patches of a slide", f"{choice.patches} (of {task.tuning.patches.least} to {task.tuning.patches.most})"
    )
    facts.add_row("at a time", str(min(choice.micro_batch, choice.patches)))
    facts.add_row(
        "computed twice", _TWICE[choice.recompute] + (f", {plan.compute:.2f} × the operations" * (plan.compute > 1))
    )
    facts.add_row("matrix products in", choice.precision)
    if choice.offload:
        facts.add_row("optimizer", "in the computer's memory")
    console.print(facts, highlight=False)
    console.print()

    needs = Table("predicted peak", "GB", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    needs.columns[1].justify = "right"
    for name, label in _PARTS.items():
        size = getattr(plan.parts, name)
        if size:
            needs.add_row(label, _gb(size))
    needs.add_row("[bold]together[/bold]", f"[bold]{_gb(plan.peak_bytes)}[/bold]")
    needs.add_row("allowed", _gb(plan.budget_bytes))
    console.print(needs, highlight=False)
    console.print()
    console.print(_levers(plan.levers), highlight=False)


_TWICE = {"none": "nothing", "upper": "the trained stages", "whole": "the whole encoder"}
_PARTS = {
    "weights": "weights",
    "gradients": "gradients of the weights",
    "optimizer": "the optimizer's states",
    "kept": "kept for the backward pass",
    "micro_batch": "the patches at work",
    "head": "features and head",
    "context": "the GPU's context and work space",
}


def _levers(levers: tuple[Lever, ...]) -> Table:
    """Return what each means saves, those that are not used dimmed."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("means")
    for heading in ("without, GB", "with, GB", "saves, GB"):
        table.add_column(heading, justify="right")
    table.add_column("costs")
    for lever in levers:
        saved = max(0, lever.off - lever.on)
        style = None if lever.used else "dim"
        table.add_row(lever.name, _gb(lever.off), _gb(lever.on), _gb(saved), lever.cost, style=style)
    return table


def _gb(size: int) -> str:
    """Return bytes as GB of 10⁹."""
    gb = size / 10**9
    return f"{gb:.2f}" if gb >= 1 else f"{gb:.3f}"
