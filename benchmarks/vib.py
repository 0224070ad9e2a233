"""Fine-tuning the encoder on a few patches a slide: what it costs, whether it finds the right ones, what it brings.

Three parts, each with a table in docs/fine-tuning.md:

- *compute*: operations, seconds and memory of a training step of ResNet-50, gradients through all patches of a slide
  against the selected ones; and the memory plan's prediction against the peaks of real steps (`_vib_compute.py`);
- *recall*: planted patches of the demo's drawn slides among the K best of the selector, of attention, of chance
  (`_vib_recall.py`);
- *auc*: mean-pool, max-pool and ABMIL before and after federated fine-tuning, by real processes (`_vib_auc.py`).

`python benchmarks/vib.py [--only PART …] [--quick] [--write]`: a quarter of an hour on two cores. `--seeds` draws other
cohorts than those that are reported, to choose settings on.
"""

import argparse
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import _vib_auc
import _vib_compute
import _vib_recall
import torch
from _common import machine, print_line, write_block
from _drawn_cohort import draw_cohort
from rich.console import Console
from rich.table import Table

PARTS = ("compute", "recall", "auc")
SEEDS = (0, 1, 2)
_PAGE = Path(__file__).parents[1] / "docs" / "fine-tuning.md"
_BARS = {
    "compute_full_vs_sparse": "≥ 10",
    "predicted_vs_measured_peak": "0.85 to 1.15",
    "recall_vib_minus_abmil": "≥ 0",
    "mean_pool_auc_gain": "> 0",
    "max_pool_auc_gain": "≥ 0",
    "abmil_auc_gain": "≥ 0",
}


def main() -> None:
    """Measure, print, and write tables where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts")
    parser.add_argument("--quick", action="store_true", help="few patches, slides and rounds: whether it works")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {_PAGE.name}")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="of the drawn cohorts")
    options = parser.parse_args()
    # As every process of a demo: sums keep one order.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    seeds = options.seeds[:1] if options.quick else options.seeds
    figures: dict[str, float] = {}
    tables: dict[str, list[list[str]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        slides = 12 if options.quick else 36
        drawn = any(part in options.only for part in ("recall", "auc"))
        cohorts = {seed: draw_cohort(work / f"cohort-{seed}", seed, slides) for seed in seeds} if drawn else {}
        if "compute" in options.only:
            figures |= _vib_compute.measure(quick=options.quick)
            tables |= {"step": _vib_compute.step_table(figures), "pipeline": _vib_compute.pipeline_table(figures)}
        if "recall" in options.only:
            figures |= _vib_recall.measure(cohorts, epochs=8 if options.quick else 60)
            tables["recall"] = _vib_recall.table(figures)
        if "auc" in options.only:
            figures |= _vib_auc.measure(cohorts, work, quick=options.quick)
            tables["auc"] = _vib_auc.table(figures, seeds)
    ratios = ratios_of(figures, options.only)
    _show(tables, ratios, quick=options.quick)
    if options.write:
        for name, rows in tables.items():
            write_block(_PAGE, f"vib {name}", rows)
    print_line("vib", {key: value for key, value in figures.items() if key not in ratios}, ratios, quick=options.quick)


def ratios_of(figures: Mapping[str, float], parts: Sequence[str]) -> dict[str, float]:
    """Return what is held against bars."""
    ratios = {}
    if "compute" in parts:
        ratios |= {key: figures[key] for key in ("compute_full_vs_sparse", "predicted_vs_measured_peak")}
    if "recall" in parts:
        # At the share nearest to what fine-tuning takes in the third part: 32 of about 127 patches.
        ours, theirs = (figures[f"recall {name} 0.3"] for name in (_vib_recall.OURS, _vib_recall.THEIRS))
        ratios["recall_vib_minus_abmil"] = ours - theirs
    if "auc" in parts:
        for pooling in _vib_auc.POOLINGS:
            ratios[f"{pooling.replace('-', '_')}_auc_gain"] = figures[f"auc {pooling} gain"]
    return ratios


def _show(tables: Mapping[str, Sequence[Sequence[str]]], ratios: Mapping[str, float], *, quick: bool) -> None:
    console = Console(width=150)
    console.print(f"{machine()}{' (quick)' if quick else ''}")
    bars = [["ratio", "measured", "bar"], *([key, f"{value:.4g}", _BARS[key]] for key, value in ratios.items())]
    for name, rows in {**tables, "bars": bars}.items():
        table = Table(*rows[0], title=name)
        for row in rows[1:]:
            table.add_row(*row)
        console.print(table)


if __name__ == "__main__":
    main()
