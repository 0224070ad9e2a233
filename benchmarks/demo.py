"""The demo over several seeds: does the federated model earn its keep, in what time and memory?

Runs `fedpath demo` as it is with three seeds, which change slides, splits, initialisation and training. The lowest
federated AUC and the largest time and memory are held against the bars. `python benchmarks/demo.py [--quick]`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

from _common import report


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed instead of three")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as folder:
        runs = [_run(Path(folder) / str(seed), seed) for seed in range(1 if quick else 3)]
    figures = {
        "federated_auc_mean": mean(run["federated"] for run in runs),
        "mean_of_local_auc": mean(run["mean_of_local"] for run in runs),
        "pooled_auc": mean(run["pooled"] for run in runs),
        "seconds_max": max(run["resources"]["seconds"] for run in runs),
        "peak_memory_mb_max": max(run["resources"]["peak_memory_mb"] for run in runs),
        "seeds": len(runs),
    }
    ratios = {
        "federated_auc_min": min(run["federated"] for run in runs),
        "federated_minus_local_min": min(run["federated_minus_mean_of_local"] for run in runs),
    }
    bars = {
        "federated_auc_min": "≥ 0.90",
        "federated_minus_local_min": "> 0",
        "seconds_max": "≤ 180",
        "peak_memory_mb_max": "≤ 3000",
    }
    report("demo", figures, ratios, bars, quick=quick)


def _run(folder: Path, seed: int) -> dict:
    command = [sys.executable, "-m", "fedpath.cli", "demo", "--seed", str(seed), "--dir", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    summary: dict = json.loads((folder / "summary.json").read_text())
    print(f"seed {seed}: {summary['headline']}", flush=True)
    return summary


if __name__ == "__main__":
    main()
