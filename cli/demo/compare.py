"""The comparison only the demo can make: it plays all hospitals, so it may put their test slides side by side.

In a real federation these slides stay apart, and the coordinator sees each hospital's own figures only.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from fedpath.cli.demo.plan import Hospital, Plan
from fedpath.client.explain.heatmap import attention_heatmap, save_scores
from fedpath.core.cohort import Example, Split
from fedpath.core.config import FederationConfig, load_federation, load_site
from fedpath.core.models import load_model
from fedpath.core.models.protocol import BagModel
from fedpath.core.report.data import Heatmap, Interval, ModelKind, ModelResult, Prediction
from fedpath.core.training.bootstrap import bootstrap_auc
from fedpath.core.training.data import load_site_examples
from fedpath.core.training.evaluation import predict

_HEATMAPS_PER_HOSPITAL = 2


@dataclass(frozen=True, slots=True)
class Cohorts:
    """Every hospital's examples by split, and the union of the test slides in one order."""

    config: FederationConfig
    examples: dict[str, dict[Split, list[Example]]]

    @property
    def test(self) -> list[tuple[str, Example]]:
        """(hospital, example) of all test slides."""
        return [(site, example) for site, splits in self.examples.items() for example in splits["test"]]


def load_cohorts(plan: Plan) -> Cohorts:
    """Load the features of all hospitals."""
    config = load_federation(plan.federation)
    return Cohorts(
        config,
        {hospital.name: load_site_examples(load_site(hospital.config), config) for hospital in plan.hospitals},
    )


def judge(name: str, kind: ModelKind, weights: Path, cohorts: Cohorts, *, site: str | None = None) -> ModelResult:
    """Test a model on the union of the test slides; the interval resamples patients."""
    model, _ = load_model(weights)
    test = cohorts.test
    targets = [example.target for _, example in test]
    probabilities_BC = predict(model, [example.bag for _, example in test])
    interval = bootstrap_auc(
        targets,
        probabilities_BC,
        # Patients of different hospitals are different people, whatever they are called.
        [f"{where}:{example.patient_id}" for where, example in test],
        seed=cohorts.config.federation.seed,
    )
    return ModelResult(
        name=name,
        kind=kind,
        test_auc=None if interval is None else Interval(interval.value, interval.low, interval.high),
        predictions=tuple(
            Prediction(where, example.target, tuple(map(float, row)))
            for (where, example), row in zip(test, probabilities_BC, strict=True)
        ),
        site=site,
    )


def draw_heatmaps(plan: Plan, weights: Path, cohorts: Cohorts) -> tuple[Heatmap, ...]:
    """Draw the federated model's attention on a few test slides of each hospital, beside the planted truth.

    Chosen are the tumour slide the model is surest of, and the one it is least sure of.
    """
    model, _ = load_model(weights)
    heatmaps = []
    for hospital in plan.hospitals:
        positive = [example for example in cohorts.examples[hospital.name]["test"] if example.target == 1]
        scored = sorted(
            zip(predict(model, [example.bag for example in positive])[:, 1].tolist(), positive, strict=True),
            key=lambda pair: (-pair[0], pair[1].slide_id),
        )
        chosen = [scored[0], scored[-1]][: min(len(scored), _HEATMAPS_PER_HOSPITAL)] if scored else []
        heatmaps += [_heatmap(hospital, model, example, probability, cohorts) for probability, example in chosen]
    return tuple(heatmaps)


def _heatmap(hospital: Hospital, model: BagModel, example: Example, probability: float, cohorts: Cohorts) -> Heatmap:
    with torch.inference_mode():
        attention_N = model(example.bag).attention_N.double().numpy()
    truth = json.loads((hospital.truth / f"{example.slide_id}.json").read_text())
    labels = cohorts.config.task.labels
    png = attention_heatmap(
        hospital.slides / f"{example.slide_id}.tif",
        example.bag,
        attention_N,
        [[tuple(point) for point in polygon] for polygon in truth["tumour"]],
        positive=labels[1],
        titled=False,
    )
    # The raw scores stay with the hospital, beside its other results.
    save_scores(hospital.state / "attention" / f"{example.slide_id}.csv", example.bag.coords_N2.numpy(), attention_N)
    return Heatmap(hospital.name, example.slide_id, labels[example.target], probability, png)
