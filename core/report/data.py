"""Everything a report shows, and nothing else: no files, no clock.

The page, the figures and the summary read only this. Units are in the names or the docstrings: seconds, bytes, µm/px.
``None`` means unknown or not defined (an AUC where one class is missing). Tuples are shown in their order.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fedpath.core.report import curves

ModelKind = Literal["federated", "local", "pooled"]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % confidence interval; without bounds where none was computed."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Both ends, when both are known and finite."""
        if self.low is None or self.high is None or not (math.isfinite(self.low) and math.isfinite(self.high)):
            return None
        return self.low, self.high


@dataclass(frozen=True, slots=True)
class Splits:
    """Counts by split."""

    train: int
    validation: int
    test: int

    @property
    def total(self) -> int:
        """Sum over the splits."""
        return self.train + self.validation + self.test


@dataclass(frozen=True, slots=True)
class Federation:
    """What was run, by which settings."""

    name: str
    seed: int
    rounds: int
    labels: tuple[str, ...]
    """In class order; with two labels the second is the positive class."""
    model: str
    parameters: int
    encoder: str
    feature_width: int
    mpp: float | None
    """µm/px of the patches; None for bags that do not come from slides."""
    patch_px: int | None
    encoder_sha256: str | None = None
    model_sha256: str | None = None
    """Hash of the global model the results are about."""
    settings: tuple[tuple[str, str], ...] = ()
    """Further settings as (name, value), in the order to be shown."""
    versions: tuple[tuple[str, str], ...] = ()
    """Software as (name, version)."""
    finished: str | None = None
    """When the run ended, as it should be printed."""

    @property
    def unit(self) -> str:
        """What is classified: "slide", or "bag" where no slide is behind it."""
        return "bag" if self.mpp is None else "slide"

    @property
    def positive(self) -> str:
        """The class whose probability is shown."""
        return self.labels[1]


@dataclass(frozen=True, slots=True)
class Hospital:
    """One hospital's cohort, in counts."""

    name: str
    slides: Splits
    positives: Splits
    """Slides of the positive class."""
    patients: Splits
    mpp_level0: float | None = None
    """µm/px of its scanner."""
    patches: int | None = None
    note: str | None = None
    """What sets it apart, for example the stain."""


@dataclass(frozen=True, slots=True)
class SiteRound:
    """One hospital in one round."""

    site: str
    validation_auc: float | None
    validation_loss: float | None
    training_loss: float | None
    seconds: float
    bytes_sent: int
    """From the hospital to the coordinator."""
    bytes_received: int
    patients: int | None = None
    """Whose slides trained its update; the most of any parameter group."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A hospital whose update did not count, with the reason."""

    site: str
    reason: str


@dataclass(frozen=True, slots=True)
class Round:
    """One round. ``sites`` holds those that answered."""

    number: int
    sites: tuple[SiteRound, ...]
    validation_auc: float | None
    """Mean over the hospitals, weighted by their validation slides."""
    asked: tuple[str, ...]
    answered: tuple[str, ...]
    refused: tuple[Refusal, ...] = ()
    seconds: float | None = None
    late: tuple[Refusal, ...] = ()
    """Hospitals that were asked and had not answered when the round ended, or had gone away, with the reason."""
    patients: int | None = None
    """Patients that counted; the most of any parameter group."""

    def of(self, site: str) -> SiteRound | None:
        """Return what ``site`` did in this round; None when it did not answer."""
        return next((entry for entry in self.sites if entry.site == site), None)


@dataclass(frozen=True, slots=True)
class Prediction:
    """One test slide. It carries no identifier on purpose: curves do not need one."""

    site: str
    target: int
    probabilities: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ModelResult:
    """One model on the test slides of all hospitals together.

    Raises:
        ValueError: an AUC is given that is not the AUC of the predictions.
    """

    name: str
    """Unique; the key in the summary, for example "federated", "local-A", "pooled"."""
    kind: ModelKind
    test_auc: Interval | None
    """On the union of the test slides, interval from resampling patients."""
    predictions: tuple[Prediction, ...] = ()
    site: str | None = None
    """Whose slides trained it; for kind "local"."""
    site_auc: Mapping[str, Interval | None] = field(default_factory=dict)
    """Intervals by hospital of the test slides; where absent, the value alone comes from the predictions."""

    def __post_init__(self) -> None:
        if (self.kind == "local") != (self.site is not None):
            raise ValueError(f"model {self.name}: a local model names its site, another one does not")
        if not self.predictions:
            return
        stated = [(None, self.test_auc), *((site, interval) for site, interval in self.site_auc.items())]
        for site, interval in stated:
            actual = curves.auc(*self.arrays(site))
            if interval is not None and (actual is None or not math.isclose(interval.value, actual, abs_tol=1e-6)):
                where = f"at {site}" if site else "on all test slides"
                raise ValueError(
                    f"model {self.name}: stated AUC {where} {interval.value}, its predictions give {actual}"
                )

    def arrays(self, site: str | None = None) -> tuple[curves.Ints, curves.Floats]:
        """Return targets [N] and probabilities [N, C], of one hospital's test slides or of all."""
        chosen = [entry for entry in self.predictions if site is None or entry.site == site]
        classes = len(self.predictions[0].probabilities) if self.predictions else 2
        targets_N = np.array([entry.target for entry in chosen], dtype=np.int64)
        probabilities_NC = np.array([entry.probabilities for entry in chosen], dtype=np.float64)
        return targets_N, probabilities_NC.reshape(len(chosen), classes)

    def auc_at(self, site: str) -> Interval | None:
        """Return the AUC on one hospital's test slides; None when a class is missing there."""
        if (stated := self.site_auc.get(site)) is not None:
            return stated
        value = curves.auc(*self.arrays(site)) if self.predictions else None
        return None if value is None else Interval(value)


@dataclass(frozen=True, slots=True)
class MessageKind:
    """Messages of one kind that left a hospital."""

    kind: str
    count: int
    bytes: int
    content: str
    """What is inside, in words."""


@dataclass(frozen=True, slots=True)
class Departure:
    """What left one hospital, from its own audit log, and whether the log's hash chain is whole."""

    site: str
    kinds: tuple[MessageKind, ...]
    entries: int
    """Lines of the audit log."""
    intact: bool
    head: str
    """Hash of the log's last entry: whoever keeps it can tell later whether the log was changed."""

    @property
    def bytes(self) -> int:
        """All bytes that left."""
        return sum(kind.bytes for kind in self.kinds)


@dataclass(frozen=True, slots=True)
class Heatmap:
    """An attention heatmap drawn at a hospital."""

    site: str
    slide_id: str
    label: str
    """True label."""
    probability: float
    """Of the positive class, by the federated model."""
    png: bytes
    caption: str = ""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file the run left, by a path relative to the report."""

    what: str
    path: str


@dataclass(frozen=True, slots=True)
class ReportData:
    """A whole report.

    Raises:
        ValueError: the parts contradict each other (unknown hospital, model names not unique, models with different
            test slides).
    """

    federation: Federation
    hospitals: tuple[Hospital, ...]
    rounds: tuple[Round, ...]
    best_round: int | None
    models: tuple[ModelResult, ...]
    departures: tuple[Departure, ...] = ()
    heatmaps: tuple[Heatmap, ...] = ()
    durations: tuple[tuple[str, float], ...] = ()
    """(what, seconds)."""
    files: tuple[FileEntry, ...] = ()
    notes: tuple[str, ...] = ()
    """What a reader must know before anything else, for example that the slides are synthetic."""

    def __post_init__(self) -> None:
        known = set(self.sites)
        named = [entry.site for round_ in self.rounds for entry in round_.sites]
        named += [prediction.site for model in self.models for prediction in model.predictions]
        named += [departure.site for departure in self.departures] + [heatmap.site for heatmap in self.heatmaps]
        if odd := sorted(set(named) - known):
            raise ValueError(f"not among the hospitals: {', '.join(odd)}")
        if len({model.name for model in self.models}) < len(self.models):
            raise ValueError("two models have the same name")
        cases = {tuple((p.site, p.target) for p in model.predictions) for model in self.models if model.predictions}
        if len(cases) > 1:
            raise ValueError("the models were not tested on the same slides in the same order")
        if self.best_round is not None and self.best_round not in {round_.number for round_ in self.rounds}:
            raise ValueError(f"the best round {self.best_round} is not among the rounds")

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the hospitals, in the report's order."""
        return tuple(hospital.name for hospital in self.hospitals)

    @property
    def federated(self) -> ModelResult | None:
        """The federated model's result."""
        return next((model for model in self.models if model.kind == "federated"), None)

    @property
    def pooled(self) -> ModelResult | None:
        """The result of training on all data in one place."""
        return next((model for model in self.models if model.kind == "pooled"), None)

    @property
    def locals(self) -> tuple[ModelResult, ...]:
        """The results of the hospitals that trained alone."""
        return tuple(model for model in self.models if model.kind == "local")

    @property
    def mean_of_local(self) -> float | None:
        """Unweighted mean of the local models' AUC on all test slides; None when one of them is unknown."""
        values = [model.test_auc.value for model in self.locals if model.test_auc is not None]
        return sum(values) / len(values) if values and len(values) == len(self.locals) else None


def display_name(model: ModelResult) -> str:
    """Return a model's name as readers see it."""
    match model.kind:
        case "federated":
            return "Federated"
        case "pooled":
            return "Pooled data"
        case "local":
            return f"{model.site} alone"


def finite(values: Sequence[float | None]) -> list[float]:
    """Return ``values`` with NaN in the place of what is unknown, for plotting."""
    return [math.nan if value is None else value for value in values]
