"""The bag models by name: one row a model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError

from fedpath.core.config.clinical import BinaryField, CategoryField, ClinicalSchema, NumberField
from fedpath.core.config.loading import Section
from fedpath.core.errors import ConfigError, did_you_mean
from fedpath.core.models.abmil import Abmil, AbmilOptions
from fedpath.core.models.acmil import Acmil, AcmilOptions
from fedpath.core.models.acmil_mha import AcmilMha, AcmilMhaOptions
from fedpath.core.models.clam import ClamMB, ClamOptions, ClamSB
from fedpath.core.models.dsmil import Dsmil, DsmilOptions
from fedpath.core.models.dtfd import DtfdAfs, DtfdMaxS, DtfdOptions
from fedpath.core.models.longmil import LongMil, LongMilOptions
from fedpath.core.models.max_pool import MaxPool
from fedpath.core.models.mean_pool import MeanPool
from fedpath.core.models.multimodal.bd import Bd, BdOptions
from fedpath.core.models.multimodal.clinical_only import ClinicalOnly, ClinicalOnlyOptions
from fedpath.core.models.multimodal.ensemble import Ensemble, EnsembleOptions
from fedpath.core.models.multimodal.filled import (
    FillAutoencoder,
    FillAutoencoderOptions,
    FillMean,
    FillOptions,
    FillZero,
)
from fedpath.core.models.multimodal.image_only import ImageOnly, ImageOnlyOptions
from fedpath.core.models.multimodal.parts import EncodedOptions
from fedpath.core.models.own import build_own, find_own, own_models
from fedpath.core.models.pooled import PooledOptions
from fedpath.core.models.protocol import BagModel
from fedpath.core.models.randomness import seeded
from fedpath.core.models.transmil import TransMil, TransMilOptions
from fedpath.core.models.vib import Vib, VibOptions


@dataclass(frozen=True, slots=True)
class OptionInfo:
    """One option of a model, as ``[model.options]`` of federation.toml takes it."""

    name: str
    default: Any
    description: str


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model as ``fedpath models list`` shows it."""

    name: str
    summary: str
    source: str
    needs: str
    """What of a bag it uses and what it costs, in words."""
    options: tuple[OptionInfo, ...]
    is_encoder: bool
    """Whether it can be the slide encoder of another: it reads slides alone, with layers of its own."""
    uses_clinical: bool
    """Whether it is built for the clinical fields of a federation."""


@dataclass(frozen=True, slots=True)
class _Row:
    summary: str
    source: str
    needs: str
    schema: type[Section]
    make: Callable[..., BagModel]
    """Takes what the row's kind of model is built from: see ``_arguments``."""
    uses_clinical: bool = False

    @property
    def has_encoder(self) -> bool:
        return issubclass(self.schema, EncodedOptions)

    @property
    def is_encoder(self) -> bool:
        return not self.has_encoder and not self.uses_clinical


_MODELS = {
    "abmil": _Row(
        "gated attention in one branch",
        "Ilse et al., ICML 2018",
        "features",
        AbmilOptions,
        Abmil,
    ),
    "acmil": _Row(
        "gated attention in several branches, kept apart and partly masked in training",
        "Zhang et al., ECCV 2024",
        "features",
        AcmilOptions,
        Acmil,
    ),
    "acmil-mha": _Row(
        "acmil with multi-head attention, one learned query a branch",
        "Zhang et al., ECCV 2024",
        "features",
        AcmilMhaOptions,
        AcmilMha,
    ),
    "bd": _Row(
        "two branches, with clinical data and without, that teach one another",
        "the method of BIBM 2023",
        "what its encoder needs; clinical data: [clinical] in federation.toml",
        BdOptions,
        Bd,
        uses_clinical=True,
    ),
    "clam-mb": _Row(
        "gated attention with a branch for each class; classifiers of pseudo-labelled patches beside it",
        "Lu et al., Nature Biomedical Engineering 2021",
        "features",
        ClamOptions,
        ClamMB,
    ),
    "clam-sb": _Row(
        "gated attention in one branch; classifiers of pseudo-labelled patches beside it",
        "Lu et al., Nature Biomedical Engineering 2021",
        "features",
        ClamOptions,
        ClamSB,
    ),
    "clinical-only": _Row(
        "an MLP on the clinical data; who has none gets the classes' frequencies",
        "a baseline of missing data",
        "clinical data: [clinical] in federation.toml; no patch is looked at",
        ClinicalOnlyOptions,
        ClinicalOnly,
        uses_clinical=True,
    ),
    "dsmil": _Row(
        "the best patch of each class, and attention to the patches like it",
        "Li et al., CVPR 2021",
        "features; a slide vector of classes times feature width",
        DsmilOptions,
        Dsmil,
    ),
    "dtfd-afs": _Row(
        "attention over pseudo-bags, then over their pooled features",
        "Zhang et al., CVPR 2022",
        "features, in the file's order",
        DtfdOptions,
        DtfdAfs,
    ),
    "dtfd-maxs": _Row(
        "attention over pseudo-bags, then over the most telling patch of each",
        "Zhang et al., CVPR 2022",
        "features, in the file's order",
        DtfdOptions,
        DtfdMaxS,
    ),
    "ensemble": _Row(
        "image-only and clinical-only side by side, their probabilities averaged",
        "a baseline of missing data",
        "what its encoder needs; clinical data: [clinical] in federation.toml",
        EnsembleOptions,
        Ensemble,
        uses_clinical=True,
    ),
    "fill-autoencoder": _Row(
        "one branch; missing clinical data are reconstructed from the slide",
        "a baseline of missing data",
        "what its encoder needs; clinical data: [clinical] in federation.toml",
        FillAutoencoderOptions,
        FillAutoencoder,
        uses_clinical=True,
    ),
    "fill-mean": _Row(
        "one branch; missing clinical data are as in the mean patient",
        "a baseline of missing data",
        "what its encoder needs; clinical data: [clinical] in federation.toml",
        FillOptions,
        FillMean,
        uses_clinical=True,
    ),
    "fill-zero": _Row(
        "one branch; missing clinical data are 0",
        "a baseline of missing data",
        "what its encoder needs; clinical data: [clinical] in federation.toml",
        FillOptions,
        FillZero,
        uses_clinical=True,
    ),
    "image-only": _Row(
        "the branch of bd without clinical data",
        "a baseline of missing data",
        "what its encoder needs",
        ImageOnlyOptions,
        ImageOnly,
    ),
    "longmil": _Row(
        "transformer over all patches: near neighbours first, then the whole slide",
        "Li et al., NeurIPS 2024",
        "features, coordinates; time grows with N² in the global block, or with N as global_form = 'windows'",
        LongMilOptions,
        LongMil,
    ),
    "max-pool": _Row(
        "the elementwise maximum over the patches",
        "a baseline of all papers",
        "features",
        PooledOptions,
        MaxPool,
    ),
    "mean-pool": _Row(
        "the mean over the patches",
        "a baseline of all papers",
        "features",
        PooledOptions,
        MeanPool,
    ),
    "transmil": _Row(
        "a transformer over all patches through Nyström attention, with positions from convolutions",
        "Shao et al., NeurIPS 2021",
        "features, in the file's order; memory grows linearly",
        TransMilOptions,
        TransMil,
    ),
    "vib": _Row(
        "a mask that keeps few patches, and gated attention over what is kept: selects the patches to fine-tune on",
        "Li et al., CVPR 2023",
        "features",
        VibOptions,
        Vib,
    ),
}


NOMINAL_CLINICAL = ClinicalSchema(
    fields={
        "age": NumberField(type="number", unit="years", minimum=0, maximum=120, outcome_derived=False),
        "grade": CategoryField(type="category", vocabulary=["1", "2", "3"], outcome_derived=False),
        "er": BinaryField(type="binary", positive="positive", negative="negative", outcome_derived=False),
    }
)
"""Three clinical fields, one of each type: for showing a model where there is no federation."""


def available_models() -> list[ModelInfo]:
    """Return every model of the registry, by name."""
    return [
        ModelInfo(
            name=name,
            summary=row.summary,
            source=row.source,
            needs=row.needs,
            options=tuple(
                OptionInfo(option, field.get_default(call_default_factory=True), field.description or "")
                for option, field in row.schema.model_fields.items()
            ),
            is_encoder=row.is_encoder,
            uses_clinical=row.uses_clinical,
        )
        for name, row in sorted(_MODELS.items())
    ]


def is_built_in(name: str) -> bool:
    """Return whether a name is one of fedpath's own models; any other is one of a user's package, or nobody's."""
    return name in _MODELS


def uses_clinical(name: str) -> bool:
    """Return whether a model is built for the clinical fields of a federation; no model of a user's package is."""
    return name in _MODELS and _MODELS[name].uses_clinical


def fields_read(name: str, clinical: ClinicalSchema | None) -> ClinicalSchema | None:
    """Return the clinical fields that a model reads: the federation's, or None where it reads none."""
    return clinical if uses_clinical(name) else None


def count_parameters(
    name: str, *, width: int, n_classes: int, clinical: ClinicalSchema | None = NOMINAL_CLINICAL
) -> int:
    """Return how many numbers a built-in model learns, with its default options; nothing is allocated."""
    row = _MODELS[name]
    with torch.device("meta"):
        model = row.make(*_arguments(name, width, n_classes, {}, clinical))
    return sum(parameter.numel() for parameter in model.parameters())


def build_model(
    name: str,
    *,
    width: int,
    n_classes: int,
    options: Mapping[str, Any] | None = None,
    seed: int,
    clinical: ClinicalSchema | None = None,
) -> BagModel:
    """Build a model with freshly drawn parameters (float32, CPU): the same seed gives the same bits.

    Args:
        name: a name of ``available_models``, or of a model that an installed package names (`own`).
        width: feature width D, ≥ 1.
        n_classes: C, ≥ 2.
        options: the model's own options; absent ones take their defaults.
        seed: of the initialisation; torch's global generator is left as it was.
        clinical: the federation's clinical fields, for models that use them; others do not look at it.

    Raises:
        ConfigError: the model or an option is unknown, an option's value is outside its range, a model lacks the
            clinical fields that it is built for, a package's model has the name of another one or is none that can be
            trained.
    """
    row, own = _MODELS.get(name), find_own(name)
    if row is None and own is not None:
        return build_own(own, width=width, n_classes=n_classes, options=options or {}, seed=seed)
    if row is None:
        known = sorted({*_MODELS, *(own.name for own in own_models())})
        raise ConfigError(f"model.name = '{name}': no such model", remedy=_nearest(name, known))
    if own is not None:
        raise own.fault("fedpath has a model of this name", "rename the package's entry point, or uninstall it")
    with seeded(seed):
        return row.make(*_arguments(name, width, n_classes, options or {}, clinical))


def _arguments(
    name: str, width: int, n_classes: int, options: Mapping[str, Any], clinical: ClinicalSchema | None
) -> list[Any]:
    """Return what a model is built from: the features' width or an encoder of them, C, its options, clinical fields."""
    row = _MODELS[name]
    checked = _check(name, row, options, "model.options")
    if row.uses_clinical and clinical is None:
        raise ConfigError(
            f"model '{name}' reads clinical data, and the federation declares none",
            remedy="declare the fields in federation.toml, a table [clinical.fields.NAME] each, or take another model",
        )
    fields = [clinical] if row.uses_clinical else []
    if isinstance(checked, EncodedOptions):
        return [_encoder(checked, width, n_classes), n_classes, checked, *fields]
    return [*([width] if row.is_encoder else []), n_classes, checked, *fields]


def _encoder(options: EncodedOptions, width: int, n_classes: int) -> BagModel:
    """Build the slide encoder that a model's options choose, with random numbers of the stream at hand."""
    row = _MODELS.get(options.encoder)
    if row is None or not row.is_encoder:
        known = sorted(name for name, row in _MODELS.items() if row.is_encoder)
        what = "no such model of fedpath" if row is None else "it is no encoder of slides alone"
        raise ConfigError(
            f"model.options.encoder = '{options.encoder}': {what}", remedy=_nearest(options.encoder, known)
        )
    place = "model.options.encoder_options"
    checked = _check(options.encoder, row, options.encoder_options, place)
    try:
        return row.make(width, n_classes, checked)
    except ConfigError as error:
        # What a model says of its own options names them where they stand when it is trained by itself.
        message = error.message.replace("model.options.", f"{place}.", 1)
        raise ConfigError(message, remedy=error.remedy) from None


def _check(name: str, row: _Row, options: Mapping[str, Any], place: str) -> Section:
    """Return a model's options in full; ``place`` is where they are written."""
    try:
        return row.schema.model_validate(dict(options), strict=True)
    except ValidationError as error:
        raise _explain(name, row.schema, error, place) from None


def _nearest(name: str, known: list[str]) -> str:
    return did_you_mean(name.lower(), known, f"choose one of: {', '.join(known)}")


def _explain(name: str, schema: type[Section], error: ValidationError, place: str) -> ConfigError:
    """Turn the first fault of a model's options into one line and a remedy."""
    fault = error.errors(include_url=False)[0]
    reason = fault["msg"].removeprefix("Value error, ")
    remedy = f"correct it in [{place}] ({name})"
    if not fault["loc"]:
        return ConfigError(f"{place}: {reason}", remedy=remedy)
    option = str(fault["loc"][0])
    if fault["type"] == "extra_forbidden":
        remedy = did_you_mean(option, schema.model_fields, f"remove it; {name} knows: {', '.join(schema.model_fields)}")
        return ConfigError(f"{place}.{option}: model '{name}' has no such option", remedy=remedy)
    return ConfigError(f"{place}.{option} = {fault['input']!r}: {reason}", remedy=remedy)
