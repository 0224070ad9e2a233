"""One of seven hospitals lies: the mean is lost, what is made for liars keeps what an honest federation learns.

The small form of benchmarks/poisoning.py. Kept: at most 0.1 below the AUC of the mean when nobody lies. The cohort
was chosen after looking at results (docs/poisoning.md): this guards what works, and measures nothing.
"""

import threading
from pathlib import Path
from typing import Any

import pytest
from _hostile import Attack, Hospitals
from federation import LABELS, WIDTH, write_cohort
from in_process import write_sites

from fedpath.core.cohort import SPLITS, load_cohort
from fedpath.core.cohort.examples import load_examples
from fedpath.core.config import FederationConfig, load_site
from fedpath.core.events import EventLog
from fedpath.core.models import load_model
from fedpath.core.training.alone import initial_model
from fedpath.core.training.evaluation import evaluate
from fedpath.server.folder import RunFolder
from fedpath.server.records import RoundManifest, read_rounds
from fedpath.server.rounds import FederatedRun

NAMES = tuple("ABCDEFG")
LIARS = NAMES[-1:]
MARGIN = 0.1
ROBUST: list[dict[str, Any]] = [
    {"combine": "median"},
    {"combine": "trimmed-mean", "byzantine": 1},
    {"combine": "geometric-median"},
    {"combine": "krum", "byzantine": 1},
    {"combine": "multi-krum", "byzantine": 1},
    {"combine": "bulyan", "byzantine": 1},
]
ATTACKS = [Attack("flipped", 10), Attack("random", 100)]


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven hospitals of 24 training patients, and a cohort that none of them has."""
    folder = tmp_path_factory.mktemp("hospitals")
    write_sites(folder, NAMES, patients=36)
    write_cohort(folder / "test", "X", seed=100, patients=60)
    return folder


def run(
    hospitals: Path, out: Path, settings: dict[str, Any], attack: Attack | None = None
) -> tuple[float, list[RoundManifest]]:
    """The last round's AUC on the other cohort, and the rounds."""
    config = FederationConfig.model_validate(
        {
            "federation": {"name": "test", "sites": list(NAMES)},
            "server": {"address": "localhost:1", "min_sites": len(NAMES), "grace_s": 0.0},
            "task": {"labels": list(LABELS)},
            "features": {"encoder": "noise", "width": WIDTH, "mpp": 0.5, "patch_px": 128},
            "model": {"name": "abmil", "options": {"inner": 16, "attention": 16}},
            "training": {"rounds": 4, "local_epochs": 2, "learning_rate": 0.02},
            "aggregation": settings,
        }
    )
    sites = {name: load_site(hospitals / name / "site.toml").model_copy(update={"state": out / name}) for name in NAMES}
    talk = Hospitals(sites, "test", attack, LIARS)
    folder = RunFolder(out / "run", config)
    FederatedRun(config, "run", initial_model(config), talk, folder, EventLog(), threading.Event()).execute()
    model, _ = load_model(out / "run" / "last.safetensors")
    cohort = load_cohort(hospitals / "test" / "manifest.csv", labels=LABELS)
    test = [one for split in SPLITS for one in load_examples(cohort, hospitals / "test/features", split, width=WIDTH)]
    auc = evaluate(model, test).auc
    assert auc is not None
    return auc, read_rounds(out / "run")


@pytest.fixture(scope="module")
def honest(hospitals: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    """The AUC of the mean when nobody lies."""
    auc, _ = run(hospitals, tmp_path_factory.mktemp("honest"), {})
    assert auc > 0.9
    return auc


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_the_mean_is_lost(hospitals: Path, honest: float, tmp_path: Path, attack: Attack) -> None:
    auc, manifests = run(hospitals, tmp_path, {}, attack)
    assert all(set(manifest.counted()) == set(NAMES) for manifest in manifests)  # nothing about them is wrong in form
    assert auc < honest - MARGIN


@pytest.mark.parametrize("settings", ROBUST, ids=lambda settings: settings["combine"])
def test_estimators_for_liars_keep_what_is_learnt(
    hospitals: Path, honest: float, tmp_path: Path, settings: dict[str, Any]
) -> None:
    for attack in ATTACKS:
        auc, manifests = run(hospitals, tmp_path / str(attack), settings, attack)
        assert auc >= honest - MARGIN, attack
        for manifest in manifests:
            if settings["combine"] in ("krum", "multi-krum", "bulyan"):
                assert manifest.chosen is not None
                assert not set(LIARS) & {site for sites in manifest.chosen.values() for site in sites}
