"""One training and one test of the missing-modality study: a method, a missing rate, a draw.

All methods get the same patients, splits, missing tables, seed, widths, learning rate and number of steps.
What is compared in a draw has met the same chances.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from _planted_modalities import Planted, breast_cohort, perfect_scores, planted_cohort, without_table, without_tables

from fedpath.core.cohort import Example
from fedpath.core.config.clinical import ClinicalSchema
from fedpath.core.exchange.groups import group_of, load_arrays, to_arrays
from fedpath.core.models import BagModel, build_model
from fedpath.core.models.multimodal.parts import MultimodalModel
from fedpath.core.training import TrainSettings, auc, examine, train
from fedpath.core.training.standard import standard_of

FILLINGS = ("fill-zero", "fill-mean", "fill-autoencoder")
METHODS = ("bd", "image-only", "clinical-only", *FILLINGS, "ensemble")
PERCENTS = (0, 20, 40, 60, 80, 100)
HOSPITALS = 5
WIDTH = 32
"""Of every hidden layer that has an option for it."""
_MIN_PATIENTS = 5
"""Below it a hospital says nothing about its clinical fields."""

Data = Literal["planted", "many", "breast", "federated"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How all methods are trained on one kind of data."""

    learning_rate: float
    epochs: int
    """Passes over the training patients; in the federated form rounds of one pass at each hospital."""


RECIPES: Mapping[Data, Recipe] = {
    "planted": Recipe(1e-3, 16),
    "many": Recipe(1e-3, 8),
    "breast": Recipe(1e-3, 8),
    "federated": Recipe(3e-3, 16),
}
"""What was best for all methods together in ``missing_modality.py --tune``, on draws that are not reported."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many patients."""

    train: int = 120
    """Of the planted cohort."""
    many_train: int = 400
    """Of the same with many patients; in the federated form of all hospitals together."""
    test: int = 1000
    breast_train: int = 285
    """Of the 569; the others are tested."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is trained on what."""

    data: Data
    method: str
    percent: int
    """Of the patients without a table; in the federated form of the hospitals."""
    draw: int
    recipe: Recipe
    planted: Planted = field(default_factory=Planted)
    sizes: Sizes = field(default_factory=Sizes)
    variant: str = ""
    """Of ``bd``'s terms; see ``VARIANTS``."""

    @property
    def seed(self) -> int:
        """Of the initialisation and the training."""
        return self.draw * 100


@dataclass(frozen=True, slots=True)
class Score:
    """On the test patients."""

    auc: float
    macro_f1: float
    auc_with: float | None
    """Among those with a table."""
    auc_without: float | None


WITHOUT_KAPPA = "without κ"
VARIANTS: Mapping[str, Mapping[str, float]] = {
    "as it is": {},
    WITHOUT_KAPPA: {"single_in_multi": 0.0},
    "no distillation": {"to_single": 0.0, "to_multi": 0.0},
    "classes only (M to S)": {"to_multi": 0.0},
    "features only (S to M)": {"to_single": 0.0},
    # λ/H ‖h_M − sg h_S‖² with λ = H.
    "features as a plain sum": {"to_multi": float(WIDTH)},
    "without the encoder's own loss": {"encoder_loss": 0.0},
}


def run(job: Job) -> Score:
    """Train and test; one thread, so that a process a core does not get into another's way."""
    torch.set_num_threads(1)
    schema, parts, test = _data(job)
    model = _build(job, schema)
    if isinstance(model, MultimodalModel):
        model.use_standard(standard_of(schema, [(part, _MIN_PATIENTS) for part in parts]))
    if job.data == "federated":
        _train_together(model, parts, job)
    else:
        train(model, parts[0], _settings(job, job.recipe.epochs), seed=job.seed)
    return _score(model, test)


def best_possible(planted: Planted, sizes: Sizes, draw: int, percent: int) -> float:
    """Return the AUC of a perfect reader of the planted evidence on the test patients of a draw."""
    cohort = planted_cohort(planted, sizes.test, seed=draw, part=1)
    left = without_tables(cohort.examples, percent, seed=draw)
    has_B = np.array([example.bag.clinical is not None for example in left])
    found = auc([example.target for example in left], perfect_scores(planted, cohort.evidence_B2, has_B))
    assert found is not None
    return found


def _data(job: Job) -> tuple[ClinicalSchema, list[list[Example]], list[Example]]:
    """Return the schema, the training patients of each hospital (one, unless federated), and the test patients."""
    schema, parts, tests = _complete(job.data, job.draw, job.planted, job.sizes)
    if job.data != "federated":
        learned, tested = (without_tables(part[0], job.percent, seed=job.draw) for part in (parts, tests))
        return schema, [learned], tested
    # Whole hospitals, nested as the patients are.
    order = np.random.default_rng([job.draw, 3]).permutation(HOSPITALS)
    gone = set(order[: round(HOSPITALS * job.percent / 100)].tolist())

    def seen(hospital: int, examples: Sequence[Example]) -> list[Example]:
        return [without_table(example) for example in examples] if hospital in gone else list(examples)

    test = [example for hospital, examples in enumerate(tests) for example in seen(hospital, examples)]
    return schema, [seen(hospital, examples) for hospital, examples in enumerate(parts)], test


@cache
def _complete(
    data: Data, draw: int, planted: Planted, sizes: Sizes
) -> tuple[ClinicalSchema, list[list[Example]], list[list[Example]]]:
    """Return the schema and each hospital's training and test patients, all with their tables."""
    if data == "breast":
        cohort = breast_cohort(planted, seed=draw)
        return cohort.schema, [cohort.examples[: sizes.breast_train]], [cohort.examples[sizes.breast_train :]]
    hospitals = HOSPITALS if data == "federated" else 1
    train_patients = sizes.train if data == "planted" else sizes.many_train
    learned, tested = (
        planted_cohort(planted, patients, seed=draw, part=part)
        for part, patients in enumerate((train_patients, sizes.test))
    )
    return learned.schema, _shared_out(learned.examples, hospitals), _shared_out(tested.examples, hospitals)


def _shared_out(examples: list[Example], hospitals: int) -> list[list[Example]]:
    """Deal the patients out in blocks; both classes take turns in each."""
    edges = [round(len(examples) * hospital / hospitals) for hospital in range(hospitals + 1)]
    return [examples[start:end] for start, end in pairwise(edges)]


def _build(job: Job, schema: ClinicalSchema) -> BagModel:
    options: dict[str, Any] = {}
    if job.method != "clinical-only":
        options = {"encoder": "abmil", "encoder_options": {"inner": WIDTH, "attention": WIDTH}, "hidden": WIDTH}
    if job.method in ("bd", "image-only", "ensemble"):
        options["prompt"] = WIDTH
    options |= VARIANTS[job.variant or "as it is"]
    return build_model(
        job.method, width=job.planted.width, n_classes=2, options=options, seed=job.seed, clinical=schema
    )


def _train_together(model: BagModel, parts: list[list[Example]], job: Job) -> None:
    """Train in rounds: each hospital from the global model, each group the mean over the patients who trained it."""
    rounds = job.recipe.epochs
    reference = to_arrays(model)
    for round_ in range(rounds):
        sums, patients = dict[str, np.ndarray](), Counter[str]()
        for hospital, examples in enumerate(parts):
            load_arrays(model, reference)
            span = (round_ / rounds, (round_ + 1) / rounds)
            seed = (job.seed * 1000 + round_) * 10 + hospital
            done = train(model, examples, _settings(job, 1), seed=seed, span=span)
            for name, array in to_arrays(model, done.patients_by_group).items():
                sums[name] = sums.get(name, 0) + np.float32(done.patients_by_group[group_of(name)]) * array
            patients.update(done.patients_by_group)
        means = {name: np.asarray(total / np.float32(patients[group_of(name)])) for name, total in sums.items()}
        reference = reference | means
    load_arrays(model, reference)


def _settings(job: Job, epochs: int) -> TrainSettings:
    # In float32 wherever it runs: which processor it was is not what is compared.
    return TrainSettings(epochs=epochs, learning_rate=job.recipe.learning_rate, precision="float32")


def _score(model: BagModel, test: Sequence[Example]) -> Score:
    examined = examine(model, test)
    has = np.array([example.bag.clinical is not None for example in test])
    y_B = np.array([example.target for example in test])
    assert examined.metrics.auc is not None
    return Score(
        examined.metrics.auc,
        examined.metrics.macro_f1,
        *(auc(y_B[here], examined.probabilities_BC[here]) if here.any() else None for here in (has, ~has)),
    )
