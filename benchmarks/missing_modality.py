"""What a model is worth when clinical tables are missing: BD, image or table alone, three fillings, an ensemble.

Missing rates 0 to 100 % in steps of 20 in training and test patients, whole tables, nested and seeded. In each of five
draws of patients all methods meet the same ones with the same seed. Four kinds of data: slide and table with planted
evidence (``_planted_modalities`` has the formulas; the options below set it), with few and with many patients to learn
from, scikit-learn's breast-cancer table with planted slides, and a federation of five hospitals of which whole ones
lack the table. Beside it, terms of BD's loss are switched off. What docs/missing-data.md says comes from here.

`python benchmarks/missing_modality.py [--quick] [--write] [--image D] [--clinical D] [--overlap SHARE]`; `--write` puts
tables and pictures into docs/. `--tune` instead compares learning rates and epochs, on draws that are not reported.
"""

import argparse
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import mean

from _common import machine, print_line, write_block
from _missing_figures import TITLES, Figures, Rows, ablation_of, plot, ratios_of, summarise, table_of
from _missing_runs import (
    METHODS,
    PERCENTS,
    RECIPES,
    VARIANTS,
    WITHOUT_KAPPA,
    Data,
    Job,
    Recipe,
    Score,
    Sizes,
    best_possible,
    run,
)
from _planted_modalities import Planted
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

_DOCS = Path(__file__).parents[1] / "docs"
_STUDY, _PAGE = _DOCS / "missing-data.md", _DOCS / "benchmarks.md"
_DRAWS = range(5)
_TUNING_DRAWS = range(100, 102)
_SETTINGS = [
    Recipe(3e-4, 8),
    *(Recipe(rate, epochs) for rate, epochs in product((1e-3, 3e-3), (4, 8))),
    *(Recipe(rate, 16) for rate in (1e-3, 3e-3)),
]
_ABLATED, _TUNED_AT = (0, 40, 80), (60,)
_WITHOUT_KAPPA_AT = (40, 60, 80)
_FEDERATED = ("bd", "image-only", "fill-zero", "fill-mean", "fill-autoencoder", "ensemble")


def main() -> None:
    """Measure, print, and write tables and pictures where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one draw of few patients: whether it works, not how well")
    parser.add_argument("--write", action="store_true", help=f"put tables and pictures into {_DOCS.name}/")
    parser.add_argument("--tune", action="store_true", help="compare learning rates and epochs on draws not reported")
    for name, default in (("image", 1.5), ("clinical", 1.5), ("overlap", 0.3)):
        parser.add_argument(f"--{name}", type=float, default=default, help=f"planted evidence (default {default})")
    parser.add_argument("--only", nargs="+", choices=TITLES, default=list(TITLES), help="kinds of data")
    options = parser.parse_args()
    planted = Planted(options.image, options.clinical, options.overlap)
    kinds: list[Data] = options.only
    if options.tune:
        _tune(planted, quick=options.quick)
        return
    scores = _run_all(_jobs(planted, kinds, quick=options.quick))
    draws = _DRAWS[:1] if options.quick else _DRAWS
    perfect: dict[tuple[Data, int], float] = {
        (data, percent): mean(best_possible(planted, _sizes(options.quick), draw, percent) for draw in draws)
        for data, percent in product(kinds, PERCENTS)
        if data in ("planted", "many")
    }
    figures = summarise(scores, perfect) | {f"best_auc_{name}": value for name, value in planted.best_auc.items()}
    _show(figures, planted, kinds, quick=options.quick)
    if options.write:
        _write(figures, kinds, quick=options.quick)
    print_line("missing_modality", figures, ratios_of(figures, kinds[0]), quick=options.quick)


def _sizes(quick: bool) -> Sizes:
    return Sizes(train=60, many_train=100, test=200, breast_train=100) if quick else Sizes()


def _jobs(planted: Planted, kinds: Sequence[Data], *, quick: bool) -> list[Job]:
    """Return every training that is done; a model that never reads the table is trained for one rate only."""
    jobs = []
    for data, method, percent in product(kinds, METHODS, PERCENTS):
        if (data == "federated" and method not in _FEDERATED) or (method == "image-only" and percent):
            continue
        for draw in _DRAWS[:1] if quick else _DRAWS:
            jobs.append(Job(data, method, percent, draw, RECIPES[data], planted, _sizes(quick)))
    for job in [job for job in jobs if job.method == "bd"]:
        for variant in VARIANTS:
            shown = variant == WITHOUT_KAPPA and job.percent in _WITHOUT_KAPPA_AT
            ablated = VARIANTS[variant] and job.data == "many" and job.percent in _ABLATED
            if shown or ablated:
                jobs.append(replace(job, variant=variant))
    return jobs


def _run_all(jobs: Sequence[Job]) -> dict[Job, Score]:
    """Run the jobs, a process a core with one thread each; started afresh, for threads and a copied torch clash."""
    scores: dict[Job, Score] = {}
    context = multiprocessing.get_context("spawn")
    with Progress() as progress, ProcessPoolExecutor(os.cpu_count(), context) as pool:
        task = progress.add_task("trainings", total=len(jobs))
        running = {pool.submit(run, job): job for job in jobs}
        for done in as_completed(running):
            scores[running[done]] = done.result()
            progress.advance(task)
    return {job: scores[job] for job in jobs}


def _tune(planted: Planted, *, quick: bool) -> None:
    """Print the mean AUC over all methods of each setting: what is good for all of them together is used for all."""
    draws = _TUNING_DRAWS[:1] if quick else _TUNING_DRAWS
    methods = [method for method in METHODS if method != "clinical-only"]
    jobs = [
        Job(data, method, percent, draw, recipe, planted, _sizes(quick))
        for data, recipe, draw, method, percent in product(TITLES, _SETTINGS, draws, methods, _TUNED_AT)
        if method != "image-only" or percent == _TUNED_AT[0]
    ]
    scores = _run_all(jobs)
    for data in TITLES:
        rows = [["learning rate", "epochs", *methods, "mean"]]
        for recipe in _SETTINGS:
            found = {
                method: mean(
                    score.auc
                    for job, score in scores.items()
                    if (job.data, job.recipe, job.method) == (data, recipe, method)
                )
                for method in methods
            }
            cells = [f"{value:.3f}" for value in (*found.values(), mean(found.values()))]
            rows.append([f"{recipe.learning_rate:g}", str(recipe.epochs), *cells])
        _print(f"{TITLES[data]}: AUC, mean over missing rates of {_TUNED_AT} %", rows)


def _show(figures: Figures, planted: Planted, kinds: Sequence[Data], *, quick: bool) -> None:
    best = ", ".join(f"{name} {value:.3f}" for name, value in planted.best_auc.items())
    print(f"planted: {planted}\nAUC of a perfect reader: {best}\n{machine()}{' (quick)' if quick else ''}")
    for data in kinds:
        for figure, words in (("auc", "AUC"), ("macro_f1", "macro F1")):
            _print(f"{TITLES[data]}: {words}", table_of(figures, data, figure))
    if "many" in kinds:
        _print("terms of bd, AUC (difference to bd as it is ± standard error)", ablation_of(figures))
    for data in kinds:
        ratios = ratios_of(figures, data)
        bars = {key: "≥ -0.01" if key.endswith("min") else "≥ 0" for key in ratios}
        rows = [[key, f"{value:+.4f}", bars[key] if data == "planted" else ""] for key, value in ratios.items()]
        _print(TITLES[data], [["ratio", "measured", "bar"], *rows])


def _print(title: str, rows: Rows) -> None:
    table = Table(*rows[0], title=title)
    for row in rows[1:]:
        table.add_row(*row)
    Console(width=150).print(table)


def _write(figures: Figures, kinds: Sequence[Data], *, quick: bool) -> None:
    source = f"benchmarks/missing_modality.py{' --quick' if quick else ''}; mean of the draws"
    for data in kinds:
        plot(figures, data, _DOCS / "images" / f"missing-modality-{data}.svg", source)
        for figure in ("auc", "macro_f1"):
            write_block(_STUDY, f"missing_modality {data} {figure}", table_of(figures, data, figure))
    if "many" in kinds:
        write_block(_STUDY, "missing_modality terms", ablation_of(figures))
    for figure in ("auc", "macro_f1") if "planted" in kinds else ():
        write_block(_PAGE, f"missing_modality {figure}", table_of(figures, "planted", figure))


if __name__ == "__main__":
    main()
