"""Seconds that a round costs beside the training itself, on loopback: fedpath against stock Flower.

Both run real processes with TLS, node keys and a SQLite state, with two sites; first with a tiny model (a few thousand
parameters), then with one of 100 MB. Ours evaluates and trains in every round; stock Flower only hands the arrays back.
`python round_overhead.py [--quick]` interleaves them and prints medians. The longest training of
a round is subtracted (of the large model it is one optimizer step on two small bags).
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
from _common import report
from _federation import run, write_federation, write_site
from _large_model import PARAMETERS, transfer_rounds
from _stock_flower import round_seconds

from fedpath.core.bags.store import FeatureMeta, write_features
from fedpath.server.records import RoundManifest, read_rounds

_WIDTH = 16


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short repetition")
    quick = parser.parse_args().quick
    repetitions, rounds = (1, 5) if quick else (3, 12)
    ours, large = Rounds(), Rounds()
    flower: list[float] = []
    large_flower: list[float] = []
    peaks: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for repetition in range(repetitions):
            ours.take(_ours(folder / f"ours-{repetition}", rounds))
            flower += round_seconds(folder / f"flower-{repetition}", rounds=rounds, parameters=3000)[1:]
        for repetition in range(1 if quick else 2):
            manifests, peak = _ours_large(folder / f"large-{repetition}", 3 if quick else 6)
            large.take(manifests)
            peaks.append(peak)
            few = 2 if quick else 3
            large_flower += round_seconds(folder / f"large-flower-{repetition}", rounds=few, parameters=PARAMETERS)[1:]
    ours_s, transfer_s = median(ours.without_training), median(large.without_training)
    figures = {
        "ours_s": ours_s,
        "ours_with_training_s": median(ours.whole),
        "flower_s": median(flower),
        "transfer_100mb_round_s": transfer_s,
        "transfer_100mb_with_training_s": median(large.whole),
        "transfer_100mb_slowest_s": max(large.without_training),
        "flower_transfer_100mb_round_s": median(large_flower),
    }
    ratios = {
        "ours_s": ours_s,
        "flower_vs_ours": median(flower) / ours_s,
        "transfer_100mb_round_s": transfer_s,
        "flower_vs_ours_100mb": median(large_flower) / transfer_s,
        "transfer_100mb_peak_vs_model": max(peaks),
    }
    bars = {"ours_s": "< 1.0 s", "transfer_100mb_round_s": "≤ 3 s", "transfer_100mb_peak_vs_model": "≤ 2.5"}
    report("round_overhead", figures, ratios, bars, quick=quick)


@dataclass
class Rounds:
    """Seconds of rounds."""

    whole: list[float] = field(default_factory=list)
    without_training: list[float] = field(default_factory=list)
    """Less the longest training in each."""

    def take(self, manifests: list[RoundManifest]) -> None:
        """Take the rounds of a run in. Round 1 also loads data and libraries; no side's first round counts."""
        for manifest in manifests[1:]:
            training = max(part.training_s or 0.0 for part in manifest.sites.values())
            self.whole.append(manifest.seconds)
            self.without_training.append(manifest.seconds - training)


def _ours_large(folder: Path, rounds: int) -> tuple[list[RoundManifest], float]:
    def run_it(place: Path, body: str, watch: Callable[[int], None]) -> Path:
        return _run(place, body.format(rounds=rounds), watch, slides=4)

    return transfer_rounds(folder, run_it)


def _ours(folder: Path, rounds: int) -> list[RoundManifest]:
    body = (
        f'[task]\nlabels = ["a", "b"]\n[features]\nencoder = "noise"\nwidth = {_WIDTH}\n'
        f"[training]\nrounds = {rounds}\nlocal_epochs = 1\n"
        "[model.options]\ninner = 16\nattention = 16\n"
    )
    return read_rounds(_run(folder, body))


def _run(folder: Path, body: str, watch: Callable[[int], None] = lambda pid: None, slides: int = 8) -> Path:
    cohorts = {}
    for index, site in enumerate("AB"):
        cohorts[site] = folder / site
        _write_cohort(cohorts[site], np.random.default_rng(index), slides)
        write_site(cohorts[site], site)
    federation = write_federation(folder, ["A", "B"], seed=0, body=body)
    return run(federation, cohorts, folder, watch)


def _write_cohort(folder: Path, random: np.random.Generator, slides: int) -> None:
    """Write tiny bags of noise, half of them to train on."""
    rows = ["patient_id,slide_id,label,split"]
    for number in range(slides):
        slide = f"s{number}"
        split = ("train", "train", "validation", "test")[number * 4 // slides]
        rows.append(f"p{number},{slide},{'ab'[number % 2]},{split}")
        meta = FeatureMeta(
            slide_id=slide, encoder="noise", encoder_sha256="0" * 64, mpp_level0=None, mpp=None, patch_px=None,
            patch_size_level0=1, level0_width=None, level0_height=None, transform="none", reader="none",
            slide_sha256="0" * 64, failed_tiles=0,
        )  # fmt: skip
        coords = np.stack([np.arange(8), np.zeros(8, dtype=int)], axis=1)
        write_features(folder / "features" / f"{slide}.h5", random.normal(size=(8, _WIDTH)), coords, meta)
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
