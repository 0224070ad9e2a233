"""What each encoding of the updates saves on the wire, and what it costs: bytes a round, AUC on the demo's cohort.

The demo's slides are drawn and encoded once a seed; then the same federation runs once for each encoding, as in the
demo: a process for the coordinator and one for each hospital, over TLS. Bytes are what the coordinator's manifests say
that the hospitals' answers had, names, header and scales among them. The AUC is that of the best model on all
hospitals' test slides. `python benchmarks/wire.py [--quick] [--seeds N] [--encodings A B …] [--write]`;
``--write`` puts the table into docs/wire.md.
"""

import argparse
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from _common import report, write_block
from _federation import run, run_commands

from fedpath.cli.demo import compare
from fedpath.cli.demo.plan import ENCODER, MPP, PATCH_PX, Plan, make_plan, write_configuration
from fedpath.server.records import read_rounds

PAGE = Path(__file__).parents[1] / "docs" / "wire.md"
ENCODINGS = {
    "float32": ("float32", False),
    "float32_changes": ("float32", True),
    "float16": ("float16", False),
    "float16_changes": ("float16", True),
    "bfloat16": ("bfloat16", False),
    "bfloat16_changes": ("bfloat16", True),
    "int8": ("int8", True),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """One federation."""

    bytes: float
    """Of the hospitals' answers in a round, all together."""
    auc: float
    """Of the best model on all hospitals' test slides."""
    loss: float
    """Of the last model on the hospitals' validation slides: moves where the AUC stands still."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, five rounds, only the encodings of the bars")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--encodings", nargs="+", choices=ENCODINGS, default=list(ENCODINGS), metavar="ENCODING")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    arguments = parser.parse_args()
    quick: bool = arguments.quick
    names: list[str] = ["float32", "float16", "int8"] if quick else arguments.encodings
    if "float32" not in names:
        parser.error("--encodings: the others are held against float32")
    runs: dict[str, list[Measured]] = {name: [] for name in names}
    for seed in range(1 if quick else arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            plan = make_plan(Path(folder) / "demo", rounds=5 if quick else 15, sites=3, seed=seed, slides=36)
            _draw(plan)
            cohorts = compare.load_cohorts(plan)
            for name in names:
                runs[name].append(_measure(plan, name, cohorts))
                print(f"seed {seed}, {name}: {runs[name][-1]}", flush=True)
    of = _means(runs)
    figures = {f"kb_a_round_{name}": of(name, lambda one: one.bytes) / 1e3 for name in names}
    figures |= {f"auc_{name}": of(name, lambda one: one.auc) for name in names}
    figures |= {f"validation_loss_{name}": of(name, lambda one: one.loss) for name in names}
    figures["seeds"] = len(runs["float32"])
    ratios = {f"bytes_{name}": _share(of, name) for name in names if name != "float32"}
    # float32 changes are the same mathematics: their "loss" is how far chance goes.
    lost = [name for name in ("float32_changes", "int8") if name in names]
    ratios |= {f"auc_loss_{name}": figures["auc_float32"] - figures[f"auc_{name}"] for name in lost}
    if len(runs["float32"]) > 1:
        figures |= {f"auc_loss_{name}_error": _standard_error(runs["float32"], runs[name]) for name in lost}
    bars = {"bytes_float16": "≤ 0.52", "bytes_int8": "≤ 0.28", "auc_loss_int8": "≤ 0.01"}
    if arguments.write and names == list(ENCODINGS):
        _write(names, of)
    report("wire", figures, ratios, bars, quick=quick)


def _standard_error(ones: list[Measured], others: list[Measured]) -> float:
    """Return the standard error of the mean difference in AUC, by seed."""
    differences = [one.auc - other.auc for one, other in zip(ones, others, strict=True)]
    return stdev(differences) / math.sqrt(len(differences))


Means = Callable[[str, Callable[[Measured], float]], float]


def _means(runs: dict[str, list[Measured]]) -> Means:
    return lambda name, what: mean(map(what, runs[name]))


def _share(of: Means, name: str) -> float:
    return of(name, lambda one: one.bytes) / of("float32", lambda one: one.bytes)


def _draw(plan: Plan) -> None:
    """Draw the slides and make features of them, as the demo does."""
    write_configuration(plan)
    logs = plan.folder / "logs"
    amount = ["--seed", str(plan.seed), "--slides", str(plan.slides)]
    draw = {
        f"draw-{hospital.name}": [
            *("slides", "draw", hospital.folder, "--site", hospital.name, "--index", str(hospital.index)),
            *amount,
        ]
        for hospital in plan.hospitals
    }
    how = ["--encoder", ENCODER, "--mpp", str(MPP), "--patch", str(PATCH_PX)]
    encode = {
        f"encode-{hospital.name}": ["slides", "encode", hospital.slides, "--out", hospital.features, *how]
        for hospital in plan.hospitals
    }
    run_commands(logs, **draw)
    run_commands(logs, **encode)


def _measure(plan: Plan, name: str, cohorts: compare.Cohorts) -> Measured:
    """Run the demo's federation with one encoding."""
    encoding, changes_only = ENCODINGS[name]
    folder = plan.folder / name
    folder.mkdir()
    federation = folder / "federation.toml"
    section = f'\n[exchange]\nencoding = "{encoding}"\nchanges_only = {str(changes_only).lower()}\n'
    federation.write_text(plan.federation.read_text() + section)
    run_folder = run(federation, {hospital.name: hospital.folder for hospital in plan.hospitals}, folder)
    manifests = read_rounds(run_folder)
    uploaded = [sum(part.received_bytes for part in manifest.sites.values()) for manifest in manifests]
    judged = compare.judge(name, "federated", run_folder / "best.safetensors", cohorts)
    assert judged.test_auc is not None
    loss = manifests[-1].validation_loss
    assert loss is not None
    assert all(len(manifest.counted()) == len(plan.hospitals) for manifest in manifests)
    return Measured(mean(uploaded), judged.test_auc.value, loss)


def _write(names: list[str], of: Means) -> None:
    rows = [["`encoding`", "`changes_only`", "kB a round", "of float32's", "test AUC", "validation loss"]]
    for name in names:
        encoding, changes_only = ENCODINGS[name]
        rows.append(
            [
                f'`"{encoding}"`',
                "`true`" if changes_only else "`false`",
                f"{of(name, lambda one: one.bytes) / 1e3:.1f}",
                f"{_share(of, name):.3f}",
                f"{of(name, lambda one: one.auc):.4f}",
                f"{of(name, lambda one: one.loss):.4f}",
            ]
        )
    write_block(PAGE, "wire", rows)


if __name__ == "__main__":
    main()
