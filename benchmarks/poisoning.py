"""Poisoning: what is left of the demo's AUC when f of seven hospitals send updates that are meant to do harm?

The demo's patients (three hospitals of drawn slides) are dealt to seven hospitals, for Krum needs 2f + 3 and Bulyan
4f + 3. The coordinator's own code runs the rounds; f hospitals train like the others and send something else
(`_hostile.py`). f is 2, for Bulyan 1. AUC is that of the last round's model, and that of the model that the run hands
out, best by validation, on as many slides again of the same three hospitals, which no training has seen: the demo's own
test slides are so few that one more or less in its place moves the AUC by more than what is looked for.

`python benchmarks/poisoning.py [--quick] [--write]`; `--write` puts the tables into docs/poisoning.md.
"""

import argparse
import os
import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median
from typing import Any

from _common import report, write_block
from _drawn_cohort import ENCODER, LABELS, MPP, PATCH_PX, draw_cohort
from _hostile import Attack, Hospitals

from fedpath.cli.demo.plan import LEARNING_RATE, LOCAL_EPOCHS
from fedpath.cli.simulate.federation import simulated, site_names
from fedpath.cli.simulate.hospitals import Deal, make_hospitals
from fedpath.client.slides.encoders import describe
from fedpath.core.cohort import SPLITS, load_cohort
from fedpath.core.cohort.examples import load_examples
from fedpath.core.config import FederationConfig
from fedpath.core.events import EventLog
from fedpath.core.models import load_model
from fedpath.core.training.alone import initial_model
from fedpath.core.training.evaluation import predict
from fedpath.core.training.metrics import auc
from fedpath.server.folder import RunFolder
from fedpath.server.records import read_rounds
from fedpath.server.rounds import FederatedRun

_SITES = site_names(7)
_MOST_LIARS = 2
_TEST_SEED = 1000
"""Added to a cohort's seed: that of the slides to test on."""
_ATTACKS = [Attack("flipped", 1), Attack("flipped", 10), Attack("scaled", 10), Attack("scaled", 100)]
_ATTACKS += [Attack("random", 1), Attack("random", 100)]
_QUICK = [Attack("flipped", 10), Attack("random", 100)]
_PAGE = Path(__file__).parents[1] / "docs" / "poisoning.md"
_ROWS = ("mean", "mean, clipped", "median", "trimmed-mean", "geometric-median", "krum", "multi-krum", "bulyan")


@dataclass(frozen=True, slots=True)
class Case:
    """One run."""

    seed: int
    row: str
    liars: int = 0
    attack: Attack | None = None

    def settings(self, clip_norm: float) -> dict[str, Any]:
        """Return `[aggregation]`; who expects nobody to lie still says f = 1."""
        combine, _, clipped = self.row.partition(", ")
        return {"combine": combine, "byzantine": max(1, self.liars)} | ({"clip_norm": clip_norm} if clipped else {})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to."""

    best: float
    """AUC of the model that is handed out."""
    last: float
    """AUC of the last round's model."""
    norm: float
    """Median length of the honest hospitals' changes."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, two attacks, four rounds")
    parser.add_argument("--seeds", type=int, default=2, help="cohorts that are drawn")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--liars", type=int, choices=[1, 2], default=_MOST_LIARS, help="f; Bulyan's is 1")
    parser.add_argument("--dir", type=Path, help="keeps the cohorts, and finds them there the next time")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/poisoning.md")
    options = parser.parse_args()
    seeds, rounds, attacks = (1, 4, _QUICK) if options.quick else (options.seeds, options.rounds, _ATTACKS)
    outcomes: dict[Case, Outcome] = {}
    with tempfile.TemporaryDirectory() as name:
        for seed in range(seeds):
            folder = (options.dir or Path(name)) / str(seed)
            for part, drawn in (("train", seed), ("test", seed + _TEST_SEED)):
                _one_cohort(folder / part, drawn)
            with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("spawn")) as pool:
                run = partial(_run, folder, rounds)
                clean = [Case(seed, row) for row in _ROWS if row != "mean, clipped"]
                outcomes |= zip(clean, pool.map(partial(run, 1.0), clean), strict=True)
                # As long as an honest change is: what operators would look up in the manifests of an earlier run.
                clip_norm = outcomes[Case(seed, "mean")].norm
                rest = [Case(seed, "mean, clipped")]
                rest += [
                    Case(seed, row, 1 if row == "bulyan" else options.liars, attack)
                    for row in _ROWS
                    for attack in attacks
                ]
                outcomes |= zip(rest, pool.map(partial(run, clip_norm), rest), strict=True)
    _report(outcomes, attacks, options.liars, quick=options.quick, write=options.write)


def _one_cohort(folder: Path, seed: int) -> None:
    """Draw the demo's hospitals and put their patients into one folder, unless they are there."""
    if (folder / "manifest.csv").exists():
        return
    hospitals = draw_cohort(folder / "demo", seed)
    (folder / "features").mkdir(exist_ok=True)
    rows = ["patient_id,slide_id,label,split"]
    for hospital in hospitals.values():
        for slide in load_cohort(hospital.folder / "manifest.csv", labels=LABELS, name=hospital.name).slides:
            rows.append(f"{slide.patient_id},{slide.slide_id},{LABELS[slide.label]},{slide.split}")
        for file in (hospital.folder / "features").glob("*.h5"):
            file.rename(folder / "features" / file.name)
    shutil.rmtree(folder / "demo")
    (folder / "manifest.csv").write_text("\n".join([*rows, ""]))


def _config(seed: int, rounds: int, aggregation: Mapping[str, Any]) -> FederationConfig:
    """Return the demo's federation, of seven hospitals."""
    values = {
        "federation": {"name": "demo", "sites": _SITES, "seed": seed},
        "server": {"address": "127.0.0.1:1", "min_sites": len(_SITES)},
        "task": {"labels": list(LABELS)},
        "features": {"encoder": ENCODER, "width": describe(ENCODER).width, "mpp": MPP, "patch_px": PATCH_PX},
        "model": {"name": "acmil", "options": {"input_norm": "layer"}},
        "training": {"rounds": rounds, "local_epochs": LOCAL_EPOCHS, "learning_rate": LEARNING_RATE},
        "aggregation": dict(aggregation),
    }
    return simulated(FederationConfig.model_validate(values), _SITES)


def _run(folder: Path, rounds: int, clip_norm: float, case: Case) -> Outcome:
    """Do one run."""
    config = _config(case.seed, rounds, case.settings(clip_norm))
    with tempfile.TemporaryDirectory(dir=folder) as name:
        out = Path(name)
        deal = Deal(_SITES, {}, folder / "train", 0, None, case.seed)
        sites = make_hospitals(deal, config, out / "hospitals", None)
        liars = _SITES[len(_SITES) - case.liars :]
        talk = Hospitals(sites, "demo", case.attack, liars)
        run = RunFolder(out / "run", config)
        FederatedRun(config, "run", initial_model(config), talk, run, EventLog(), threading.Event()).execute()
        best, last = (_test_auc(out / "run" / f"{name}.safetensors", folder / "test") for name in ("best", "last"))
        parts = [part for manifest in read_rounds(out / "run") for part in manifest.sites.items()]
        norm = median(part.norm for site, part in parts if site not in liars and part.norm is not None)
    print(f"seed {case.seed}, {case.row}, {case.liars} × {case.attack}: {best:.3f}, {last:.3f}", flush=True)
    return Outcome(best, last, norm)


def _test_auc(weights: Path, folder: Path) -> float:
    """Return the AUC on all slides of a cohort."""
    model, _ = load_model(weights)
    cohort, width = load_cohort(folder / "manifest.csv", labels=LABELS), describe(ENCODER).width
    test = [one for split in SPLITS for one in load_examples(cohort, folder / "features", split, width=width)]
    value = auc([example.target for example in test], predict(model, [example.bag for example in test]))
    assert value is not None
    return value


def _report(
    outcomes: Mapping[Case, Outcome], attacks: Sequence[Attack], liars: int, *, quick: bool, write: bool
) -> None:
    """Print the tables and the line; write the tables if asked."""
    seeds = sorted({case.seed for case in outcomes})

    def of(row: str, attack: Attack | None = None) -> Outcome:
        count = 0 if attack is None else 1 if row == "bulyan" else liars
        found = [outcomes[Case(seed, row, count, attack)] for seed in seeds]
        return Outcome(*(mean(getattr(one, what) for one in found) for what in ("best", "last", "norm")))

    clean = of("mean")
    figures: dict[str, float] = {"seeds": len(seeds), "liars": liars, "honest_change": clean.norm}
    ratios: dict[str, float] = {}
    for what in ("last", "best"):
        rows = [["combine", "no attack", *map(str, attacks)]]
        for row in _ROWS:
            found = [getattr(of(row, attack), what) for attack in (None, *attacks)]
            rows.append([f"{row} (f = 1)" if row == "bulyan" else row, *(f"{value:.3f}" for value in found)])
            key = row.replace(", ", "_").replace("-", "_")
            figures[f"{key}_{what}_auc_no_attack"] = found[0]
            figures[f"{key}_{what}_auc_under_attack_min"] = min(found[1:])
            if what == "last":
                ratios[f"{key}_min_auc_under_attack_minus_clean_mean"] = min(found[1:]) - clean.last
        print(f"\n{what} model\n" + "\n".join(" | ".join(row) for row in rows))
        if write:
            write_block(_PAGE, f"poisoning {what}", rows)
    report("poisoning", figures, ratios, {}, quick=quick)


if __name__ == "__main__":
    main()
