"""What FedProx, SCAFFOLD and FedBN do where hospitals differ, and where they do not: whole runs of a drawn federation.

Four hospitals with 16 training patients each; in bags of the positive class a quarter of the instances is shifted, and
which features tell is the same everywhere. Three federations of them:

- alike: the hospitals differ by chance only;
- labels: one class is 7 of 8 training patients at a hospital, the other at the next (label skew);
- scanner: each hospital's features are scaled and shifted, feature by feature, in its own way (feature shift).

The bag model is attention pooling behind a layer norm, so that FedBN has something to keep (a batch norm sees one bag
at a time in training, and takes out the very shift that tells). All methods have the same data, seeds, rounds and
learning rates, which were chosen for none of them; test patients are balanced, 40 at each hospital. Figures are means
over the draws of the hospitals' mean AUC; beside them the spread (standard deviation) of its difference from FedAvg's.
Coordinator and hospitals are fedpath's own, in one process without a network.

`python benchmarks/local_methods.py [--quick] [--write]`; `--write` puts the table into docs/local-training.md.
"""

import argparse
import os
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from _common import print_line, write_block
from _in_process import InProcess
from rich.console import Console
from rich.table import Table

from fedpath.core.bags.store import FeatureMeta, write_features
from fedpath.core.config import FederationConfig, load_site
from fedpath.core.events import EventLog
from fedpath.core.training.alone import initial_model
from fedpath.server.folder import RunFolder
from fedpath.server.rounds import FederatedRun

_PAGE = Path(__file__).parents[1] / "docs" / "local-training.md"
_SITES = ("A", "B", "C", "D")
_WIDTH, _INSTANCES, _SHIFTED, _SHIFT = 16, 24, 6, 1.1
_PATIENTS = {"train": 16, "validation": 8, "test": 40}
_KINDS = ("alike", "labels", "scanner")
_METHODS: dict[str, dict[str, Any]] = {
    "FedAvg": {},
    "FedProx, μ = 0.01": {"method": "fedprox", "proximal": 0.01},
    "FedProx, μ = 1": {"method": "fedprox", "proximal": 1.0},
    "SCAFFOLD": {"method": "scaffold"},
    "FedBN": {"personal": ["norm"]},
    "SCAFFOLD + FedBN": {"method": "scaffold", "personal": ["norm"]},
}
_MODEL = """
import torch
from torch import nn


class NormMIL(nn.Module):
    def __init__(self, width, n_classes, hidden=16):
        super().__init__()
        self.norm, self.reduce = nn.LayerNorm(width), nn.Linear(width, hidden)
        self.score, self.head = nn.Linear(hidden, 1), nn.Linear(hidden, n_classes)

    def forward(self, features):
        hidden = torch.tanh(self.reduce(self.norm(features)))
        attention = torch.softmax(self.score(hidden).T, dim=1)
        slide = attention @ hidden
        return self.head(slide), attention, slide
"""


def main() -> None:
    """Measure, print, and write the table where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one draw, two rounds")
    parser.add_argument("--write", action="store_true", help="put the table into docs/local-training.md")
    arguments = parser.parse_args()
    draws, rounds = (1, 2) if arguments.quick else (5, 6)
    aucs: dict[tuple[str, str], list[float]] = {(method, kind): [] for method in _METHODS for kind in _KINDS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _install(folder / "site-packages")
        for draw in range(draws):
            for kind in _KINDS:
                hospitals = folder / f"{kind}-{draw}"
                for index, site in enumerate(_SITES):
                    _write_hospital(hospitals / site, site, index, kind, draw)
                for number, (method, local) in enumerate(_METHODS.items()):
                    aucs[method, kind].append(_run(hospitals, f"run-{number}", local, rounds=rounds, seed=draw))
                    print(f"draw {draw}, {kind}, {method}: {aucs[method, kind][-1]:.3f}", file=sys.stderr, flush=True)
    rows = [["", *_KINDS], *([method, *(_cell(aucs, method, kind) for kind in _KINDS)] for method in _METHODS)]
    table = Table(*rows[0], title="mean test AUC of four hospitals (difference from FedAvg ± its spread over draws)")
    for row in rows[1:]:
        table.add_row(*row)
    Console().print(table)
    if arguments.write:
        write_block(_PAGE, "local-methods", rows)
    figures = {f"auc {method}, {kind}": mean(values) for (method, kind), values in aucs.items()}
    print_line("local_methods", figures, {}, quick=arguments.quick)


def _cell(aucs: Mapping[tuple[str, str], list[float]], method: str, kind: str) -> str:
    values, plain = aucs[method, kind], aucs["FedAvg", kind]
    if method == "FedAvg":
        return f"{mean(values):.3f}"
    differences = [one - other for one, other in zip(values, plain, strict=True)]
    spread = f" ± {stdev(differences):.3f}" if len(differences) > 1 else ""
    return f"{mean(values):.3f} ({mean(differences):+.3f}{spread})"


def _install(folder: Path) -> None:
    """Write the model's package where this process finds it."""
    metadata = folder / "normmil-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: normmil\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[fedpath.models]\nnorm-mil = normmil:NormMIL\n")
    (folder / "normmil.py").write_text(_MODEL)
    sys.path.insert(0, str(folder))


def _write_hospital(folder: Path, site: str, index: int, kind: str, draw: int) -> None:
    random = np.random.default_rng([draw, index, _KINDS.index(kind)])
    common = np.random.default_rng(draw)
    direction = common.normal(size=_WIDTH)
    direction *= _SHIFT / np.linalg.norm(direction) * 2
    scale, offset = np.ones(_WIDTH), np.zeros(_WIDTH)
    if kind == "scanner":
        scale, offset = np.exp(random.normal(0, 0.7, _WIDTH)), random.normal(0, 2.0, _WIDTH)
    rows = ["patient_id,slide_id,label,split"]
    for split, patients in _PATIENTS.items():
        for number in range(patients):
            positive = number % 2
            if kind == "labels" and split == "train":
                positive = int(number % 8 == 0) ^ (index % 2)
            slide = f"{site}-{split}-{number:02d}"
            rows.append(f"patient-{slide},{slide},{('no', 'yes')[positive]},{split}")
            features = random.normal(size=(_INSTANCES, _WIDTH))
            features[:_SHIFTED] += positive * direction
            _write_bag(folder / "features" / f"{slide}.h5", slide, features * scale + offset)
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    (folder / "site.toml").write_text(
        f'[site]\nname = "{site}"\n[data]\nmanifest = "manifest.csv"\nfeatures = "features"\n'
        '[policy]\nown_models = ["norm-mil"]\n'
    )


def _write_bag(path: Path, slide: str, features: np.ndarray) -> None:
    meta = FeatureMeta(
        slide_id=slide, encoder="noise", encoder_sha256="0" * 64, mpp_level0=0.25, mpp=0.5, patch_px=128,
        patch_size_level0=256, level0_width=10_000, level0_height=10_000, transform="none", reader="drawn",
        slide_sha256="0" * 64, failed_tiles=0,
    )  # fmt: skip
    coords = np.stack([np.arange(len(features)) * 256, np.zeros(len(features), dtype=int)], axis=1)
    write_features(path, features, coords, meta)


def _run(hospitals: Path, name: str, local: Mapping[str, Any], *, rounds: int, seed: int) -> float:
    """Return the mean test AUC of a run's best model over the hospitals."""
    config = FederationConfig.model_validate(
        {
            "federation": {"name": "drawn", "sites": list(_SITES), "seed": seed},
            "server": {"address": "localhost:1", "grace_s": 0.0},
            "task": {"labels": ["no", "yes"]},
            "features": {"encoder": "noise", "width": _WIDTH, "mpp": 0.5, "patch_px": 128},
            "model": {"name": "norm-mil"},
            "training": {"rounds": rounds, "local_epochs": 4, "learning_rate": 3e-3},
            "local": local,
        }
    )
    folder = RunFolder(hospitals / "coordinator" / name, config)
    talk = InProcess(_SITES, lambda site: load_site(hospitals / site / "site.toml"), "drawn")
    run = FederatedRun(config, name, initial_model(config), talk, folder, EventLog(), threading.Event())
    return float(run.execute().summary["test_auc_mean_over_sites"])


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
