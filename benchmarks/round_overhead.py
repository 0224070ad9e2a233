"""Seconds that a round costs beside the training itself, on loopback: fedpath against stock Flower.

Both run real processes with TLS, node keys and a SQLite state; both train a tiny model (a few thousand parameters) at
two sites. Ours evaluates and trains in every round; stock Flower only hands the arrays back. `python round_overhead.py
[--quick]` interleaves them and prints medians.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
from _common import report
from _federation import run, write_federation, write_site
from _stock_flower import round_seconds

from fedpath.core.bags.store import FeatureMeta, write_features
from fedpath.server.records import read_rounds

_WIDTH = 16


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short repetition")
    quick = parser.parse_args().quick
    repetitions, rounds = (1, 5) if quick else (3, 12)
    ours: list[float] = []
    whole: list[float] = []
    flower: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for repetition in range(repetitions):
            manifests = _ours(folder / f"ours-{repetition}", rounds)
            # Round 1 also loads data and libraries; neither side's first round counts.
            for manifest in manifests[1:]:
                training = max(part.training_s or 0.0 for part in manifest.sites.values())
                ours.append(manifest.seconds - training)
                whole.append(manifest.seconds)
            flower += round_seconds(folder / f"flower-{repetition}", rounds=rounds, parameters=3000)[1:]
    figures = {"ours_s": median(ours), "ours_with_training_s": median(whole), "flower_s": median(flower)}
    ratios = {"ours_s": median(ours), "flower_vs_ours": median(flower) / median(ours)}
    report("round_overhead", figures, ratios, {"ours_s": "< 1.0 s"}, quick=quick)


def _ours(folder: Path, rounds: int):
    cohorts = {}
    for index, site in enumerate("AB"):
        cohorts[site] = folder / site
        _write_cohort(cohorts[site], np.random.default_rng(index))
        write_site(cohorts[site], site)
    body = (
        f'[task]\nlabels = ["a", "b"]\n[features]\nencoder = "noise"\nwidth = {_WIDTH}\n'
        f"[training]\nrounds = {rounds}\nlocal_epochs = 1\n"
        "[model.options]\ninner = 16\nattention = 16\n"
    )
    federation = write_federation(folder, ["A", "B"], seed=0, body=body)
    return read_rounds(run(federation, cohorts, folder))


def _write_cohort(folder: Path, random: np.random.Generator) -> None:
    """Write eight tiny bags of noise."""
    rows = ["patient_id,slide_id,label,split"]
    for number in range(8):
        slide = f"s{number}"
        split = ("train", "train", "validation", "test")[number // 2]
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
