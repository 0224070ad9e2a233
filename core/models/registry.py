"""The bag models by name: one row a model."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError

from fedpath.core.errors import ConfigError
from fedpath.core.models.abmil import Abmil, AbmilOptions
from fedpath.core.models.acmil import Acmil, AcmilOptions
from fedpath.core.models.acmil_mha import AcmilMha, AcmilMhaOptions
from fedpath.core.models.clam import ClamMB, ClamOptions, ClamSB
from fedpath.core.models.dsmil import Dsmil, DsmilOptions
from fedpath.core.models.dtfd import DtfdAfs, DtfdMaxS, DtfdOptions
from fedpath.core.models.inputs import BagModelOptions
from fedpath.core.models.longmil import LongMil, LongMilOptions
from fedpath.core.models.max_pool import MaxPool
from fedpath.core.models.mean_pool import MeanPool
from fedpath.core.models.own import build_own, find_own, own_models
from fedpath.core.models.pooled import PooledOptions
from fedpath.core.models.protocol import BagModel
from fedpath.core.models.randomness import seeded
from fedpath.core.models.transmil import TransMil, TransMilOptions


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


@dataclass(frozen=True, slots=True)
class _Row:
    summary: str
    source: str
    needs: str
    schema: type[BagModelOptions]
    make: Callable[[int, int, Any], BagModel]


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
}


def available_models() -> list[ModelInfo]:
    """Return every model of the registry, by name."""
    return [
        ModelInfo(
            name,
            row.summary,
            row.source,
            row.needs,
            tuple(
                OptionInfo(option, field.get_default(), field.description or "")
                for option, field in row.schema.model_fields.items()
            ),
        )
        for name, row in sorted(_MODELS.items())
    ]


def is_built_in(name: str) -> bool:
    """Return whether a name is one of fedpath's own models; any other is one of a user's package, or nobody's."""
    return name in _MODELS


def count_parameters(name: str, *, width: int, n_classes: int) -> int:
    """Return how many numbers a built-in model learns, with its default options; nothing is allocated."""
    row = _MODELS[name]
    with torch.device("meta"):
        model = row.make(width, n_classes, row.schema())
    return sum(parameter.numel() for parameter in model.parameters())


def build_model(
    name: str, *, width: int, n_classes: int, options: Mapping[str, Any] | None = None, seed: int
) -> BagModel:
    """Build a model with freshly drawn parameters (float32, CPU): the same seed gives the same bits.

    Args:
        name: a name of ``available_models``, or of a model that an installed package names (`own`).
        width: feature width D, ≥ 1.
        n_classes: C, ≥ 2.
        options: the model's own options; absent ones take their defaults.
        seed: of the initialisation; torch's global generator is left as it was.

    Raises:
        ConfigError: the model or an option is unknown, an option's value is outside its range, a package's model has
            the name of another one or is none that can be trained.
    """
    row, own = _MODELS.get(name), find_own(name)
    if row is None and own is not None:
        return build_own(own, width=width, n_classes=n_classes, options=options or {}, seed=seed)
    if row is None:
        known = sorted({*_MODELS, *(own.name for own in own_models())})
        near = difflib.get_close_matches(name.lower(), known, n=1)
        remedy = f"did you mean '{near[0]}'?" if near else f"choose one of: {', '.join(known)}"
        raise ConfigError(f"model.name = '{name}': no such model", remedy=remedy)
    if own is not None:
        raise own.fault("fedpath has a model of this name", "rename the package's entry point, or uninstall it")
    try:
        checked = row.schema.model_validate(dict(options or {}), strict=True)
    except ValidationError as error:
        raise _explain(name, row.schema, error) from None
    with seeded(seed):
        return row.make(width, n_classes, checked)


def _explain(name: str, schema: type[BagModelOptions], error: ValidationError) -> ConfigError:
    """Turn the first fault of a model's options into one line and a remedy."""
    fault = error.errors(include_url=False)[0]
    option = str(fault["loc"][0])
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(option, schema.model_fields, n=1)
        known = ", ".join(schema.model_fields)
        remedy = f"did you mean '{near[0]}'?" if near else f"remove it; {name} knows: {known}"
        return ConfigError(f"model.options.{option}: model '{name}' has no such option", remedy=remedy)
    return ConfigError(
        f"model.options.{option} = {fault['input']!r}: {fault['msg']}", remedy=f"correct it in [model.options] ({name})"
    )
