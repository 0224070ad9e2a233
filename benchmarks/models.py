"""Every model of the registry on the same bags with the same budget: test AUC and macro F1, mean and spread.

Two sets of bags: Musk 1 (92 bags, 5 folds, 3 seeds) and the demo's hospitals, drawn and encoded as `fedpath demo` does
it and trained on as one (3 cohorts). A model is trained at each of three learning rates with the loop of
`fedpath train`; the epoch and the learning rate with the best validation AUC are tested, once. Options are the same for
all: `input_norm = "layer"`, `inner = 64` where a model has it, the defaults otherwise.

`python benchmarks/models.py [--quick] [--write]`; `--write` puts the table into docs/benchmarks.md.
"""

import argparse
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from statistics import mean, stdev

from _common import machine, print_line, shared_data, write_block
from _federation import run_commands
from rich.console import Console
from rich.table import Table

from fedpath.cli.demo.plan import ENCODER, LABELS, MPP, PATCH_PX
from fedpath.core.cohort import SPLITS, Example, Split, load_cohort, load_examples
from fedpath.core.cohort.table import cohort_from_table
from fedpath.core.config import FederationConfig
from fedpath.core.models import available_models
from fedpath.core.training import evaluate, train_alone
from fedpath.core.training.alone import initial_model, merit
from fedpath.core.training.cross_validation import make_folds

_PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
_HEADING = ["model", "Musk 1 AUC", "Musk 1 macro F1", "demo AUC", "demo macro F1"]
_FIGURES = ("musk_auc", "musk_macro_f1", "demo_auc", "demo_macro_f1")
_FOLDS = 5


@dataclass(frozen=True, slots=True)
class Size:
    """How much is done."""

    musk_seeds: int = 3
    musk_folds: int = _FOLDS
    demo_cohorts: int = 3
    demo_slides: int = 36
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    # Validations, and epochs between them; the demo's are those of `fedpath demo`.
    musk_epochs: tuple[int, int] = (15, 2)
    demo_epochs: tuple[int, int] = (15, 4)


_QUICK = Size(1, 2, 1, 10, (1e-3,), (3, 2), (3, 2))


@dataclass(frozen=True, slots=True)
class Job:
    """One model on one split of one set of bags."""

    bags: str
    model: str
    seed: int
    fold: int
    size: Size
    folder: Path


def main() -> None:
    """Measure, print, and write the table where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few runs of few epochs: whether it works, not how well")
    parser.add_argument("--write", action="store_true", help=f"put the table into {_PAGE.name}")
    options = parser.parse_args()
    size = _QUICK if options.quick else Size()
    names = [info.name for info in available_models() if info.is_encoder]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _make_bags(folder, size)
        jobs = list(_jobs(folder, size, names))
        scores: dict[tuple[str, str], list[tuple[float, float]]] = {}
        # A process a core, with one thread each; started afresh, for threads and a copied torch do not go together.
        with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
            for done, (job, score) in enumerate(zip(jobs, pool.map(_run, jobs), strict=True), start=1):
                scores.setdefault((job.model, job.bags), []).append(score)
                if done % (len(jobs) // 10 or 1) == 0:
                    print(f"{done} of {len(jobs)} runs", flush=True)
    figures = {
        f"{bags}_{figure}:{model}": [run[index] for run in runs]
        for (model, bags), runs in scores.items()
        for index, figure in enumerate(("auc", "macro_f1"))
    }
    rows = [[model, *(_in_words(figures[f"{figure}:{model}"]) for figure in _FIGURES)] for model in names]
    _show(rows, quick=options.quick)
    if options.write:
        write_block(_PAGE, "models", [_HEADING, *rows])
    spread = {f"{key}_sd": stdev(values) for key, values in figures.items() if len(values) > 1}
    print_line("models", {key: mean(values) for key, values in figures.items()} | spread, {}, quick=options.quick)


def _make_bags(folder: Path, size: Size) -> None:
    """Write Musk 1 as a cohort, and draw and encode the demo's hospitals."""
    cohort_from_table(shared_data() / "tables" / "musk1.csv", folder / "musk")
    how = ["--encoder", ENCODER, "--mpp", str(MPP), "--patch", str(PATCH_PX)]
    for seed in range(size.demo_cohorts):
        places = {site: folder / "demo" / str(seed) / site for site in "ABC"}
        amount = ["--seed", str(seed), "--slides", str(size.demo_slides)]
        draw = {
            site: ["slides", "draw", place, "--site", site, "--index", str(index), *amount]
            for index, (site, place) in enumerate(places.items())
        }
        run_commands(folder / "logs", **draw)
        encode = {
            site: ["slides", "encode", place / "slides", "--out", place / "features", *how]
            for site, place in places.items()
        }
        run_commands(folder / "logs", **encode)


def _jobs(folder: Path, size: Size, names: list[str]) -> Iterator[Job]:
    for seed, fold, name in product(range(size.musk_seeds), range(size.musk_folds), names):
        yield Job("musk", name, seed, fold, size, folder)
    for seed, name in product(range(size.demo_cohorts), names):
        yield Job("demo", name, seed, 0, size, folder)


def _run(job: Job) -> tuple[float, float]:
    """Train a model at every learning rate; return test AUC and macro F1 of the best by validation."""
    examples = _musk(job.folder, job.seed, job.fold) if job.bags == "musk" else _demo(job.folder, job.seed)
    chosen = []
    for learning_rate in job.size.learning_rates:
        config = _config(job, examples["train"], learning_rate)
        # In float32 wherever it runs: which processor it was is not what is compared.
        result = train_alone(config, examples["train"], examples["validation"], seed=job.seed, precision="float32")
        best = next(entry.validation for entry in result.history if entry.epoch == result.best_epoch)
        assert best is not None
        chosen.append((merit(best), config, result.best_state))
    _, config, state = max(chosen, key=lambda entry: entry[0])
    model = initial_model(config)
    model.load_state_dict(state)
    metrics = evaluate(model, examples["test"])
    assert metrics.auc is not None
    return metrics.auc, metrics.macro_f1


def _config(job: Job, examples: list[Example], learning_rate: float) -> FederationConfig:
    info = next(info for info in available_models() if info.name == job.model)
    has_inner = any(option.name == "inner" for option in info.options)
    rounds, local_epochs = job.size.musk_epochs if job.bags == "musk" else job.size.demo_epochs
    return FederationConfig.model_validate(
        {
            "federation": {"name": "benchmark", "sites": ["A"], "seed": job.seed},
            "server": {"address": "localhost:1"},
            "task": {"labels": ["no", "yes"]},
            "features": {"encoder": "any", "width": examples[0].bag.features_ND.shape[1]},
            "model": {"name": job.model, "options": {"input_norm": "layer"} | ({"inner": 64} if has_inner else {})},
            "training": {"rounds": rounds, "local_epochs": local_epochs, "learning_rate": learning_rate},
        }
    )


@cache
def _musk(folder: Path, seed: int, fold: int) -> dict[Split, list[Example]]:
    """Return the fold's examples by split; every bag is a patient of its own."""
    cohort = load_cohort(folder / "musk" / "manifest.csv", labels=["0", "1"])
    features = folder / "musk" / "features"
    examples = [example for split in SPLITS for example in load_examples(cohort, features, split, width=166)]
    folds = make_folds(examples, ["0", "1"], folds=_FOLDS, validation_share=0.2, seed=seed)
    return folds[fold].examples


@cache
def _demo(folder: Path, seed: int) -> dict[Split, list[Example]]:
    """Return the examples of one cohort's three hospitals together, by the splits of their manifests."""
    pooled: dict[Split, list[Example]] = {split: [] for split in SPLITS}
    for place in sorted((folder / "demo" / str(seed)).iterdir()):
        cohort = load_cohort(place / "manifest.csv", labels=list(LABELS))
        for split in SPLITS:
            pooled[split] += load_examples(cohort, place / "features", split, width=128)
    return pooled


def _in_words(values: list[float]) -> str:
    return f"{mean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{mean(values):.3f}"


def _show(rows: list[list[str]], *, quick: bool) -> None:
    table = Table("model", *_FIGURES, title=f"models{' (quick)' if quick else ''}: {machine()}")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
