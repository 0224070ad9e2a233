"""A model as one safetensors file that says how to build itself. Never pickle: loading a file runs nothing from it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedpath.core.config.clinical import ClinicalSchema
from fedpath.core.config.federation import FeaturesSection
from fedpath.core.config.model import ModelSection
from fedpath.core.errors import ConfigError, DataError
from fedpath.core.models.own import GROUP, find_own, origin_of
from fedpath.core.models.protocol import BagModel
from fedpath.core.models.registry import build_model, fields_read
from fedpath.core.tensor_files import save_tensors

REQUIRED = ("name", "width", "n_classes", "options", "labels")
"""Metadata keys without which a model cannot be rebuilt; ``options`` and ``labels`` are JSON. A model that reads
clinical data also needs ``clinical``, the JSON of its fields."""


def model_metadata(
    federation: str,
    model: ModelSection,
    features: FeaturesSection,
    labels: Sequence[str],
    clinical: ClinicalSchema | None = None,
) -> dict[str, str]:
    """Return what the checkpoint of a federation's model must say, for ``save_model``.

    ``clinical`` stands in it for a model that reads clinical data: the federation's fields, as JSON in their order.
    ``package`` stands in it for a model of another package than fedpath: its name and version.
    """
    origin = origin_of(model.name)
    fields = fields_read(model.name, clinical)
    return (
        {
            "name": model.name,
            "width": str(features.width),
            "n_classes": str(len(labels)),
            "options": json.dumps(model.options, sort_keys=True),
            "labels": json.dumps(list(labels)),
            "federation": federation,
            "encoder": features.encoder,
        }
        | ({} if fields is None else {"clinical": fields.model_dump_json()})
        | ({} if origin is None else {"package": origin})
    )


def save_model(path: Path, model_state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a model's state, whole or not at all; the same state and metadata give the same bytes.

    Args:
        path: ends in ``.safetensors`` by convention.
        model_state: ``model.state_dict()``.
        metadata: at least ``name, width, n_classes, options, labels`` (the last two as JSON); any more strings.
    """
    missing = [key for key in REQUIRED if key not in metadata]
    if missing:
        raise ValueError(f"metadata of {path} lacks {', '.join(missing)}")
    save_tensors(path, model_state, metadata)


def load_model(path: Path) -> tuple[BagModel, dict[str, str]]:
    """Rebuild the model that ``save_model`` wrote, in eval mode on the CPU, and return it with the file's metadata.

    A model of another package is built with the code of that package, which must be installed (`own`).

    Raises:
        DataError: no such file, not safetensors or truncated, not a fedpath model, its package is not installed, or its
            tensors do not fit the model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    except FileNotFoundError:
        raise DataError(f"{path}: no such model file", remedy="check the path") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not a whole safetensors file: {error}", remedy="copy or train it again") from None
    missing = [key for key in REQUIRED if key not in metadata]
    if missing:
        raise DataError(
            f"{path}: metadata lacks {', '.join(missing)}", remedy="name a model that fedpath saved (best.safetensors)"
        )
    try:
        _check_package(path, metadata)
        model = build_model(
            metadata["name"],
            width=int(metadata["width"]),
            n_classes=int(metadata["n_classes"]),
            options=json.loads(metadata["options"]),
            seed=0,
            clinical=ClinicalSchema.model_validate_json(metadata["clinical"]) if "clinical" in metadata else None,
        )
        model.load_state_dict(state)
    except (ConfigError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: does not fit model '{metadata['name']}' of this version: {error}",
            remedy=f"load it with the version of {metadata.get('package', 'fedpath')} that wrote it",
        ) from error
    return model.eval(), metadata


def _check_package(path: Path, metadata: Mapping[str, str]) -> None:
    """Refuse a model whose package is not here: what another package calls by the same name is another model."""
    if "package" not in metadata:
        return
    name, wanted = metadata["name"], metadata["package"]
    own = find_own(name)
    if own is None or own.package != wanted.rpartition(" ")[0]:
        here = ", which is not installed here" if own is None else f"; here '{name}' is of {own.origin}"
        raise DataError(
            f"{path}: its model '{name}' comes from package {wanted}{here}",
            remedy=f"install {wanted}: it names '{name}' as an entry point of group {GROUP}",
        )
