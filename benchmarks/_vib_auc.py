"""AUC of three poolings before and after federated fine-tuning of the encoder, on the demo's cohort, by real processes.

One federation a cohort, a coordinator and three hospitals, goes through nine stages of one federation.toml: each
pooling on the features that are there, select, fine-tune, encode, each pooling again on the new features. Poolings have
the same settings and the same seed both times. The best round by validation of each is tested on the test patients of
all hospitals together, which is possible here only because one machine plays them all.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import numpy as np
from _drawn_cohort import ENCODER, LABELS, MPP, PATCH_PX, SITES, Hospital
from _federation import run, write_federation, write_site

from fedpath.client.slides.encoders import describe
from fedpath.core.models import load_model
from fedpath.core.training import auc, predict

POOLINGS = ("mean-pool", "max-pool", "abmil")
WHEN = ("before", "after")
PATCHES = 32
"""K, of about 127 patches a slide."""
ENCODER_RATE = 3e-4
"""Chosen, with K, the head, its rate and the number of rounds, on cohorts of other seeds."""


def measure(cohorts: Mapping[int, Mapping[str, Hospital]], folder: Path, *, quick: bool) -> dict[str, float]:
    """Return the AUC of each pooling before and after, by cohort and their mean.

    Args:
        cohorts: hospitals by seed.
        folder: for coordinators and logs.
        quick: a few rounds: whether it works, not how well.
    """
    figures = {}
    for seed, hospitals in cohorts.items():
        record = _federate(hospitals, folder / f"federation-{seed}", seed, quick=quick)
        for pooling in POOLINGS:
            for when in WHEN:
                figures[f"auc {pooling} {when} {seed}"] = _test(record, hospitals, f"{pooling}-{when}")
    for pooling in POOLINGS:
        for when in WHEN:
            figures[f"auc {pooling} {when}"] = mean(figures[f"auc {pooling} {when} {seed}"] for seed in cohorts)
        gain = figures[f"auc {pooling} after"] - figures[f"auc {pooling} before"]
        figures[f"auc {pooling} gain"] = gain
    return figures


def table(figures: Mapping[str, float], seeds: Sequence[int]) -> list[list[str]]:
    """Return the table of the page: a row a pooling, before → after in each cohort and on average."""
    rows = [["pooling", *(f"cohort {seed}" for seed in seeds), "mean", "gain"]]
    for pooling in POOLINGS:
        cells = [
            " → ".join(f"{figures[f'auc {pooling} {when}{which}']:.3f}" for when in WHEN)
            for which in (*(f" {seed}" for seed in seeds), "")
        ]
        rows.append([pooling, *cells, f"{figures[f'auc {pooling} gain']:+.3f}"])
    return rows


def stages(*, quick: bool) -> str:
    """Return the pipeline, as federation.toml has it."""
    rounds = 2 if quick else 8

    def poolings(when: str) -> str:
        return "".join(
            f'[[stage]]\nkind = "train"\nname = "{pooling}-{when}"\n'
            f'model = {{ name = "{pooling}", options = {{ input_norm = "layer" }} }}\n'
            for pooling in POOLINGS
        )

    return f"""{poolings("before")}
[[stage]]
kind = "select"
model = {{ name = "vib", options = {{ input_norm = "layer", beta = 0.03 }} }}
[[stage]]
kind = "fine-tune"
model = {{ name = "clam-sb", options = {{ input_norm = "layer" }} }}
training = {{ rounds = {rounds}, local_epochs = 2, learning_rate = 1e-3 }}
[stage.tuning]
patches = {{ most = {PATCHES}, least = 8 }}
trainable_stages = 3
encoder_learning_rate = {ENCODER_RATE:g}
[[stage]]
kind = "encode"
{poolings("after")}"""


def _federate(hospitals: Mapping[str, Hospital], folder: Path, seed: int, *, quick: bool) -> Path:
    """Run the pipeline; return the coordinator's record of it."""
    labels = ", ".join(f'"{label}"' for label in LABELS)
    body = (
        f"[task]\nlabels = [{labels}]\n"
        f'[features]\nencoder = "{ENCODER}"\nwidth = {describe(ENCODER).width}\nmpp = {MPP}\npatch_px = {PATCH_PX}\n'
        '[model]\nname = "abmil"\n'
        f"[training]\nrounds = {3 if quick else 15}\nlocal_epochs = 4\nlearning_rate = 3e-3\n{stages(quick=quick)}"
    )
    folder.mkdir(parents=True)
    for name, hospital in hospitals.items():
        write_site(hospital.folder, name, data='[slides]\nfolder = "slides"\n[compute]\nvram_gb = 1.0\n')
    federation = write_federation(folder, SITES, seed=seed, body=body)
    return run(federation, {name: hospital.folder for name, hospital in hospitals.items()}, folder)


def _test(record: Path, hospitals: Mapping[str, Hospital], stage: str) -> float:
    """Return the AUC of a stage's best model on all test slides, with the features that the stage had."""
    (weights,) = record.glob(f"stages/*-{stage}/best.safetensors")
    model, _ = load_model(weights)
    targets: list[int] = []
    probabilities = []
    for hospital in hospitals.values():
        again = hospital.folder / "state" / record.name / "encode" / "features"
        examples = hospital.examples(again if stage.endswith("after") else None)["test"]
        targets += [example.target for example in examples]
        probabilities.append(predict(model, [example.bag for example in examples]))
    found = auc(targets, np.concatenate(probabilities))
    assert found is not None, "a cohort has test slides of both labels"
    return found
