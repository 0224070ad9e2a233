"""A made-up but plausible report: three hospitals, ten rounds, a missed round and a refused update."""

import io

import numpy as np
import pytest
from PIL import Image

from fedpath.core.report import (
    Departure,
    Federation,
    FileEntry,
    Heatmap,
    Hospital,
    Interval,
    MessageKind,
    ModelResult,
    Prediction,
    Refusal,
    ReportData,
    Round,
    SiteRound,
    Splits,
    curves,
)

SITES = ("A", "B", "C")


def make_result(name, kind, strength, *, site=None, seed=0):
    rng = np.random.default_rng(seed)
    sites = np.repeat(SITES, 14)
    targets = np.tile([0, 1], 21)
    scores = 1 / (1 + np.exp(-(strength * (targets - 0.5) + rng.normal(size=42))))
    predictions = tuple(
        Prediction(str(where), int(target), (float(1 - score), float(score)))
        for where, target, score in zip(sites, targets, scores, strict=True)
    )
    value = curves.auc(targets, np.stack([1 - scores, scores], axis=1))
    interval = Interval(value, max(value - 0.07, 0.0), min(value + 0.05, 1.0))
    return ModelResult(name, kind, interval, predictions, site)


def make_round(number):
    rng = np.random.default_rng(number)
    answered = tuple(s for s in SITES if (s, number) not in (("B", 4), ("A", 3)))
    sites = tuple(
        SiteRound(
            site,
            validation_auc=0.55 + 0.05 * min(number, 8) - 0.02 * max(number - 8, 0) + float(rng.normal(0, 0.015)),
            validation_loss=0.7 * 0.9**number,
            training_loss=0.7 * 0.85**number + 0.05 * SITES.index(site),
            seconds=2.1,
            bytes_sent=540_312,
            bytes_received=539_800,
        )
        for site in answered
    )
    mean = sum(entry.validation_auc for entry in sites) / len(sites)
    refused = (Refusal("C", "image/attention.weight holds NaN or infinite values"),) if number == 2 else ()
    late = (Refusal("A", "it is not connected"),) if number == 3 else ()
    return Round(number, sites, mean, SITES, answered, refused, 2.6, late, 8 * len(answered))


def make_data():
    image = io.BytesIO()
    Image.new("RGB", (8, 4), (200, 120, 160)).save(image, format="PNG")
    return ReportData(
        federation=Federation(
            name="demo",
            seed=0,
            rounds=10,
            labels=("normal", "tumour"),
            model="acmil",
            parameters=134_921,
            encoder="demo-conv",
            feature_width=64,
            mpp=1.0,
            patch_px=64,
            encoder_sha256="5e" * 32,
            model_sha256="a7" * 32,
            settings=(("Local epochs a round", "2"), ("Learning rate", "0.001"), ("Weight decay", "1e-05")),
            versions=(("fedpath", "0.1.0"), ("Flower", "1.41.0"), ("PyTorch", "2.13.0"), ("Python", "3.11.9")),
            finished="2026-03-14 10:26 UTC",
        ),
        hospitals=tuple(
            Hospital(
                site,
                slides=Splits(12, 6, 14),
                positives=Splits(6, 3, 7),
                patients=Splits(10, 5, 12),
                mpp_level0=0.25 + 0.013 * index,
                patches=14_203 + 811 * index,
                note=("violet, strong", "pale", "eosin-heavy, older scanner")[index],
            )
            for index, site in enumerate(SITES)
        ),
        rounds=tuple(make_round(number) for number in range(1, 11)),
        best_round=8,
        models=(
            make_result("federated", "federated", 2.3),
            make_result("local-A", "local", 1.1, site="A", seed=1),
            make_result("local-B", "local", 0.9, site="B", seed=2),
            make_result("local-C", "local", 1.3, site="C", seed=3),
            make_result("pooled", "pooled", 2.4, seed=4),
        ),
        departures=tuple(
            Departure(
                site,
                kinds=(
                    MessageKind(
                        "description", 1, 612, "number of slides and patients by class, how features were made"
                    ),
                    MessageKind(
                        "update", 10, 5_403_120, "model weights, number of patients, training loss, validation AUC"
                    ),
                    MessageKind("evaluation", 3, 4_410, "AUC, loss and scores of test slides, without their names"),
                ),
                entries=14,
                intact=True,
                head=f"{index + 11:02x}" * 32,
            )
            for index, site in enumerate(SITES)
        ),
        heatmaps=tuple(Heatmap(site, f"{site}-017", "tumour", 0.93, image.getvalue()) for site in SITES),
        durations=(("Make and encode slides", 48.2), ("Federation", 31.7), ("Comparisons and report", 22.4)),
        files=(FileEntry("Best global model", "models/best.safetensors"), FileEntry("Figures as JSON", "summary.json")),
        notes=(
            "The slides are synthetic, made by the demo: these figures show that the platform works, nothing clinical.",
        ),
    )


@pytest.fixture
def data():
    return make_data()
