"""Musk 1 as a federation of three hospitals: test AUC of the federated model beside training on the pooled data.

92 bags are dealt to three hospitals, each splits its bags by itself; real processes train ACMIL together, then the same
settings train on all training bags in one place. Both are tested on the union of the hospitals' test bags. Five seeds
change the deal, the splits, the initialisation and the training. `python benchmarks/musk.py [--quick]`.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import mean, stdev

from _common import report, shared_data
from _federation import run, run_commands, write_federation, write_site

from fedpath.core.config import load_federation, load_site
from fedpath.core.models import load_model
from fedpath.core.training.data import load_site_examples
from fedpath.core.training.evaluation import predict
from fedpath.core.training.metrics import auc

_SITES = ("A", "B", "C")
_SETTINGS = """\
[task]
labels = ["0", "1"]
[features]
encoder = "table"
width = 166
[model]
name = "acmil"
[model.options]
input_norm = "layer"
inner = 128
[training]
rounds = 20
local_epochs = 5
learning_rate = 0.001
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two seeds instead of five")
    quick = parser.parse_args().quick
    federated, pooled = [], []
    with tempfile.TemporaryDirectory() as name:
        for seed in range(2 if quick else 5):
            one, other = _one_seed(Path(name) / str(seed), seed)
            print(f"seed {seed}: federated {one:.3f}, pooled {other:.3f}", flush=True)
            federated.append(one)
            pooled.append(other)
    figures = {
        "federated_auc_sd": stdev(federated),
        "pooled_auc": mean(pooled),
        "pooled_auc_sd": stdev(pooled),
        "seeds": len(federated),
    }
    ratios = {"federated_auc": mean(federated), "pooled_minus_federated": mean(pooled) - mean(federated)}
    report("musk", figures, ratios, {"federated_auc": "≥ 0.85", "pooled_minus_federated": "≤ 0.03"}, quick=quick)


def _one_seed(folder: Path, seed: int) -> tuple[float, float]:
    """Return the test AUC of the federated model and of the pooled one."""
    folder.mkdir()
    table = shared_data() / "tables" / "musk1.csv"
    cohorts = folder / "cohorts"
    deal = ["cohort", "from-table", table, "--out", cohorts, "--sites", ",".join(_SITES), "--seed", str(seed)]
    run_commands(folder / "logs", deal=deal)
    for site in _SITES:
        write_site(cohorts / site, site, data=f"test_share = 0.3\nsplit_seed = {seed}")
    federation = write_federation(folder, _SITES, seed=seed, body=_SETTINGS)
    run_folder = run(federation, {site: cohorts / site for site in _SITES}, folder)
    everywhere = [part for site in _SITES for part in ("--site", cohorts / site / "site.toml")]
    run_commands(folder / "logs", pooled=["train", "--config", federation, *everywhere, "--out", folder / "pooled"])
    config = load_federation(federation)
    test = [
        example
        for site in _SITES
        for example in load_site_examples(load_site(cohorts / site / "site.toml"), config)["test"]
    ]
    return tuple(_test_auc(path / "best.safetensors", test) for path in (run_folder, folder / "pooled"))


def _test_auc(weights: Path, test: list) -> float:
    model, _ = load_model(weights)
    value = auc([example.target for example in test], predict(model, [example.bag for example in test]))
    assert value is not None
    return value


if __name__ == "__main__":
    main()
