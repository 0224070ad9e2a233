"""Patients whose slide and clinical table tell their class to a known degree, and how tables go missing.

A patient of class y ∈ {0, 1} has two pieces of evidence, one in the slide and one in the table, normal given the class:

    (z_i, z_c) ~ N((y − ½) (d_i, d_c), [[1, ρ], [ρ, 1]]),        ρ = overlap · min(d_i, d_c) / max(d_i, d_c)

With overlap 0 the two err independently; with overlap 1 the weaker one adds nothing to the stronger. Both together
separate the classes by

    d² = (d_i² + d_c² − 2 ρ d_i d_c) / (1 − ρ²)                  d_i² + d_c² at overlap 0, max(d_i, d_c)² at overlap 1

and the best possible AUC of evidence d is Φ(d / √2). Neither the slide nor the table loses or adds anything:

- slide: N patches of standard normal noise in D features. A share of them, the witnesses, lie ``MARK`` along a planted
  direction v and z_i along another one, u, on average exactly: the mean witness has u-coordinate z_i.
- table: z_c and standard normal noise, turned by an orthogonal matrix into number fields, each with a mean and a spread
  of its own; besides, a category and a binary field that are pure noise.

u, v and the matrix belong to the seed, so that all that is drawn with it belongs together. A second set
has a real table: scikit-learn's bundled breast-cancer data, each patient with a planted slide of its class.

Shape suffixes: B patients, F number fields; N, D as in ``fedpath.core.models``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer

from fedpath.core.bags import Bag
from fedpath.core.clinical.record import ClinicalRecord
from fedpath.core.cohort import Example
from fedpath.core.config.clinical import ClinicalSchema

Floats = NDArray[np.float64]
MARK = 8.0
"""By how many standard deviations of a patch's noise the witnesses stand out: enough to find every one."""
_STAGES = ["I", "II", "III"]
BREAST_COLUMNS = ("mean texture", "mean smoothness", "mean symmetry", "texture error")
"""Of the 30 columns: three that tell the class moderately well and one that does not. The others measure the size and
the outline of the nuclei; most of those tell benign from malignant nearly perfectly alone, and a slide could add
nothing."""


@dataclass(frozen=True, slots=True)
class Planted:
    """What is planted; see the module's docstring for the formulas."""

    image: float = 1.5
    """d_i, ≥ 0."""
    clinical: float = 1.5
    """d_c, ≥ 0."""
    overlap: float = 0.3
    """Of the two, 0 to 1."""
    patches: int = 32
    """N."""
    witnesses: float = 0.125
    """Share of the patches, rounded up to whole ones."""
    width: int = 32
    """D, ≥ 2."""
    numbers: int = 4
    """Number fields, ≥ 1."""

    def __post_init__(self) -> None:
        if min(self.image, self.clinical) < 0 or not 0 <= self.overlap <= 1:
            raise SystemExit("the evidence must be at least 0 and the overlap from 0 to 1")

    @property
    def correlation(self) -> float:
        """ρ; 0 where one of the two says nothing."""
        low, high = sorted((self.image, self.clinical))
        return self.overlap * low / high if high else 0.0

    @property
    def both(self) -> float:
        """d; the formula rearranged so that it holds for an overlap of 1, too."""
        low, high = sorted((self.image, self.clinical))
        left = low * (1 - self.overlap)
        return math.sqrt(high**2 + (left**2 / (1 - self.correlation**2) if left else 0.0))

    @property
    def best_auc(self) -> dict[str, float]:
        """The AUC of a perfect reader of the slide, of the table and of both."""
        evidence = {"image": self.image, "clinical": self.clinical, "both": self.both}
        return {name: NormalDist().cdf(d / math.sqrt(2)) for name, d in evidence.items()}


@dataclass(frozen=True, slots=True)
class Cohort:
    """Patients, what they are and what was planted in them."""

    schema: ClinicalSchema
    examples: list[Example]
    evidence_B2: Floats
    """z_i and z_c; the second is NaN where the table is real."""


def planted_cohort(planted: Planted, patients: int, *, seed: int, part: int) -> Cohort:
    """Draw patients, every other one of either class.

    Args:
        planted: what is planted.
        patients: how many.
        seed: of the planted directions, and together with ``part`` of everything else.
        part: which patients of that seed: training, validation, test, a hospital's.
    """
    random = np.random.default_rng([seed, 1 + part])
    y_B = np.arange(patients) % 2
    noise_B2 = random.normal(size=(patients, 2))
    rho = planted.correlation
    noise_B2[:, 1] = rho * noise_B2[:, 0] + math.sqrt(1 - rho**2) * noise_B2[:, 1]
    evidence_B2 = (y_B[:, None] - 0.5) * np.array([planted.image, planted.clinical]) + noise_B2
    turn_FF = _orthogonal(np.random.default_rng([seed, 0, 1]), planted.numbers)
    hidden_BF = np.column_stack([evidence_B2[:, 1], random.normal(size=(patients, planted.numbers - 1))])
    mean_F, spread_F = _scales(planted.numbers)
    numbers_BF = mean_F + spread_F * (hidden_BF @ turn_FF.T)
    others_B2 = np.column_stack([random.integers(len(_STAGES), size=patients), random.integers(2, size=patients)])
    records = [_record(values) for values in np.column_stack([numbers_BF, others_B2])]
    u_D, v_D = directions(planted, seed=seed)
    examples = [
        _example(f"{seed}-{part}-{index}", int(y), record, _slide(planted, z_i, u_D, v_D, random))
        for index, (y, z_i, record) in enumerate(zip(y_B, evidence_B2[:, 0], records, strict=True))
    ]
    return Cohort(planted_schema(planted), examples, evidence_B2)


def planted_schema(planted: Planted) -> ClinicalSchema:
    """Return the fields of planted tables."""
    scales = zip(*_scales(planted.numbers), strict=True)
    fields = {f"number_{index}": _number(mean - 20 * sd, mean + 20 * sd) for index, (mean, sd) in enumerate(scales)}
    stage = {"type": "category", "vocabulary": _STAGES, "outcome_derived": False}
    binary = {"type": "binary", "positive": "yes", "negative": "no", "outcome_derived": False}
    return ClinicalSchema.model_validate({"fields": {**fields, "stage": stage, "binary": binary}})


def breast_cohort(planted: Planted, *, seed: int) -> Cohort:
    """Return the 569 patients of scikit-learn's table in a seeded order, malignant as class 1, with planted slides.

    Only the slide's part of ``planted`` counts. Given the class, slide and table are independent.
    """
    table = load_breast_cancer()
    columns = [list(table.feature_names).index(name) for name in BREAST_COLUMNS]
    random = np.random.default_rng([seed, 1])
    order_B = random.permutation(len(table.target))
    values_BF, y_B = table.data[order_B][:, columns], 1 - table.target[order_B]
    z_B = (y_B - 0.5) * planted.image + random.normal(size=len(y_B))
    fields = {
        name.replace(" ", "_"): _number(0.0, 2.0 * float(table.data[:, column].max()))
        for name, column in zip(BREAST_COLUMNS, columns, strict=True)
    }
    u_D, v_D = directions(planted, seed=seed)
    examples = [
        _example(f"{seed}-{row}", int(y), _record(values), _slide(planted, z_i, u_D, v_D, random))
        for row, y, z_i, values in zip(order_B, y_B, z_B, values_BF, strict=True)
    ]
    schema = ClinicalSchema.model_validate({"fields": fields})
    return Cohort(schema, examples, np.column_stack([z_B, np.full(len(z_B), np.nan)]))


def without_tables(examples: Sequence[Example], percent: int, *, seed: int) -> list[Example]:
    """Take the whole table from ``percent`` of the patients (one slide each), in the same order.

    Who loses it first is seeded: the patients without a table at one rate are among those at any higher one.
    """
    order = np.random.default_rng([seed, 2]).permutation(len(examples))
    gone = set(order[: round(len(examples) * percent / 100)].tolist())
    return [without_table(example) if index in gone else example for index, example in enumerate(examples)]


def without_table(example: Example) -> Example:
    """Return the example without its clinical data."""
    return replace(example, bag=replace(example.bag, clinical=None))


def perfect_scores(planted: Planted, evidence_B2: Floats, has_table_B: NDArray[np.bool_]) -> Floats:
    """Return log p(evidence | 1) − log p(evidence | 0) of each patient (B): of the slide alone without a table."""
    (d_i, d_c), rho = (planted.image, planted.clinical), planted.correlation
    alone_B = d_i * evidence_B2[:, 0]
    if rho == 1:  # the table repeats the slide
        return alone_B
    weights_2 = np.array([d_i - rho * d_c, d_c - rho * d_i]) / (1 - rho**2)
    return np.where(has_table_B, evidence_B2 @ weights_2, alone_B)


def directions(planted: Planted, *, seed: int) -> Sequence[Floats]:
    """Return the unit vectors u and v (D), at right angles."""
    basis_DD = _orthogonal(np.random.default_rng([seed, 0, 2]), planted.width)
    return list(basis_DD.T[:2])


def _slide(planted: Planted, z_i: float, u_D: Floats, v_D: Floats, random: np.random.Generator) -> Bag:
    """Draw the patches of one slide; its id is set by the caller."""
    features_ND = random.normal(size=(planted.patches, planted.width))
    n = math.ceil(planted.witnesses * planted.patches)
    here = random.permutation(planted.patches)[:n]
    # The mean witness says z_i and nothing else along u: what noise it had there goes.
    features_ND[here] += MARK * v_D + (z_i - features_ND[here].mean(axis=0) @ u_D) * u_D
    edge = math.ceil(math.sqrt(planted.patches))
    coords_N2 = torch.tensor([(index % edge, index // edge) for index in range(planted.patches)])
    return Bag("", torch.tensor(features_ND, dtype=torch.float32), coords_N2, 1)


def _example(name: str, y: int, record: ClinicalRecord, slide: Bag) -> Example:
    return Example(replace(slide, slide_id=name, clinical=record), y, name, name)


def _record(values: Floats) -> ClinicalRecord:
    return ClinicalRecord(torch.tensor(values, dtype=torch.float64), torch.ones(len(values), dtype=torch.bool))


def _number(minimum: float, maximum: float) -> dict[str, object]:
    return {"type": "number", "unit": "1", "minimum": minimum, "maximum": maximum, "outcome_derived": False}


def _scales(numbers: int) -> tuple[Floats, Floats]:
    """Return mean and spread of each number field: units differ by orders of magnitude, as in a hospital's table."""
    spread_F = np.array([10.0 ** (index % 4 - 1) for index in range(numbers)])
    return 5 * spread_F, spread_F


def _orthogonal(random: np.random.Generator, size: int) -> Floats:
    q, _ = np.linalg.qr(random.normal(size=(size, size)))
    return np.asarray(q, dtype=np.float64)
