"""Encoders by name: what there is to know about one, and building it from its file of weights."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fedpath.core.config.stages import TuningSection
from fedpath.core.encoders.base import PatchEncoder
from fedpath.core.encoders.lora import add_adapters, has_adapters
from fedpath.core.encoders.own import find_own, own_encoders, own_row
from fedpath.core.encoders.row import EncoderInfo, Row
from fedpath.core.encoders.rows import ALIASES, ROWS
from fedpath.core.encoders.weights import fit, plain_names, read_weights
from fedpath.core.errors import ConfigError, DataError, did_you_mean
from fedpath.core.tensor_files import save_tensors

NAME, SHA256, BASE = "fedpath_encoder", "sha256", "base_sha256"
"""Metadata of a file that ``save_encoder`` wrote."""
_LAYER_SCALE = ".ls1.gamma"


def available() -> list[EncoderInfo]:
    """Return every encoder of fedpath's own; those of other packages: ``own_encoders``."""
    return [row.info for row in ROWS.values()]


def info_of(name: str) -> EncoderInfo:
    """Return what there is to know about encoder ``name``.

    Raises:
        ConfigError: no encoder has this name.
    """
    return _row(name).info


def build_encoder(name: str, weights: Path | None = None) -> PatchEncoder:
    """Build an encoder: eval mode, float32, on the CPU; no parameter asks for a gradient.

    Args:
        name: of ``available``.
        weights: a state dict of this architecture (safetensors or torch), or a file of ``save_encoder``. None for
            encoders that come with their weights.

    Raises:
        ConfigError: the name is unknown, the encoder comes without weights and none are given, or the file is of
            another encoder.
        DataError: the file cannot be read, or is not of this architecture.
    """
    row = _row(name)
    if weights is None:
        if row.draw is None:
            raise _without_weights(row.info)
        return _filled(_blank(row), row.draw())
    return _from_file(row, weights, *read_weights(weights))


def blank_encoder(name: str, tuning: TuningSection | None = None) -> PatchEncoder:
    """Build an encoder's structure without numbers, on the meta device; with adapters if ``tuning`` asks for them.

    Raises:
        ConfigError: the name is unknown, or the encoder cannot have adapters.
    """
    encoder = _blank(_row(name))
    if tuning is not None and tuning.adapter == "lora":
        add_adapters(encoder, tuning.rank, tuning.alpha)
    return encoder


def encoder_sha256(encoder: PatchEncoder) -> str:
    """Return the identity of an encoder: SHA-256 over every tensor's name, type, shape and bytes, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def save_encoder(
    path: Path, encoder: PatchEncoder, *, name: str, base_sha256: str, tuning: TuningSection | None
) -> str:
    """Write a tuned encoder as one file that says how to build it, whole or not at all; return its ``encoder_sha256``.

    Args:
        path: ends in ``.safetensors`` by convention.
        encoder: adapters stay beside the weights they adapt.
        name: of the encoder that was tuned.
        base_sha256: hash of what tuning started from.
        tuning: how; its rank and alpha are needed to build adapters again.
    """
    if has_adapters(encoder) and (tuning is None or tuning.adapter != "lora"):
        raise ValueError("an encoder with adapters is saved with the tuning section that made them")
    sha256 = encoder_sha256(encoder)
    metadata = {NAME: info_of(name).name, SHA256: sha256, BASE: base_sha256}
    if tuning is not None and tuning.adapter == "lora":
        metadata |= {"rank": str(tuning.rank), "alpha": repr(tuning.alpha)}
    save_tensors(path, encoder.state_dict(), metadata)
    return sha256


def load_encoder(path: Path) -> tuple[PatchEncoder, str]:
    """Rebuild the encoder that ``save_encoder`` wrote, as ``build_encoder`` does; return it and its name.

    Raises:
        DataError: the file cannot be read, is not of ``save_encoder``, or its content is not what was written.
        ConfigError: this version has no encoder of its name.
    """
    tensors, metadata = read_weights(path)
    if NAME not in metadata:
        raise DataError(
            f"{path}: does not say which encoder it is",
            remedy="name an encoder that fedpath saved (encoder.safetensors)",
        )
    return _from_file(_row(metadata[NAME]), path, tensors, metadata), metadata[NAME]


def trainable_names(encoder: PatchEncoder, name: str, tuning: TuningSection) -> list[str]:
    """Return the state-dict names of what fine-tuning trains: parameters, never stored statistics.

    They are those of the last ``tuning.trainable_stages`` stages (by default what the encoder's row says); with
    adapters, the adapters of all stages and nothing else.

    Raises:
        ConfigError: the encoder has fewer stages, or adapters are asked for and it has none.
    """
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    if tuning.adapter == "lora":
        adapters = [name for name in names.values() if name.rpartition(".")[2] in ("lora_down", "lora_up")]
        if not adapters:
            raise ConfigError(f"encoder '{name}' has no adapters to train", remedy='set stage.tuning.adapter = "none"')
        return adapters
    stages = len(encoder.stage_names)
    wanted = tuning.trainable_stages or info_of(name).trainable_stages
    if wanted > stages:
        raise ConfigError(
            f"stage.tuning.trainable_stages = {wanted}: encoder '{name}' has {stages} stages",
            remedy=f"take at most {stages}: {', '.join(encoder.stage_names)}",
        )
    last = {id(p) for index in range(stages - wanted, stages) for p in _parameters(encoder, index)}
    return [found for key, found in names.items() if key in last]


def first_trainable_stage(encoder: PatchEncoder, name: str, tuning: TuningSection) -> int:
    """Return the first stage that holds something to train; those below it need no graph."""
    parameters = dict(encoder.named_parameters())
    trained = {id(parameters[found]) for found in trainable_names(encoder, name, tuning)}
    stages = range(len(encoder.stage_names))
    return next(index for index in stages if any(id(p) in trained for p in _parameters(encoder, index)))


def _parameters(encoder: PatchEncoder, index: int) -> list[Tensor]:
    """Return the parameters of a stage."""
    found: list[Tensor] = []
    for part in encoder.stage_modules(index):
        found += [part] if isinstance(part, Tensor) else list(part.parameters())
    return found


def _row(name: str) -> Row:
    name = ALIASES.get(name, name)
    if name in ROWS:
        return ROWS[name]
    own = find_own(name)
    if own is None:
        known = [*ROWS, *(own.name for own in own_encoders())]
        remedy = did_you_mean(name, [*known, *ALIASES], f"available: {', '.join(known)}")
        raise ConfigError(f"encoder '{name}' is unknown", remedy=remedy)
    return own_row(own)


def _without_weights(info: EncoderInfo) -> ConfigError:
    """Say where an encoder's weights come from, under which licence, and how they are named."""
    named = "--weights FILE, or weights in [encoder] of site.toml and federation.toml"
    if not info.gated:
        return ConfigError(
            f"encoder '{info.name}' comes without weights",
            remedy=f"name their file: {named}; from: {info.source}; licence: {info.licence}",
        )
    return ConfigError(
        f"encoder '{info.name}' comes without weights: they are given to who accepts their licence ({info.licence})",
        remedy=f"accept it at {info.source}, download the file, then --encoder {info.name} {named}",
    )


def _blank(row: Row, *, layer_scale: bool = False) -> PatchEncoder:
    # On the meta device layers cost nothing and draw nothing from torch's global generator.
    with torch.device("meta"):
        encoder = row.make(layer_scale=True) if layer_scale else row.make()
    return encoder.eval().requires_grad_(False)


def _filled(encoder: PatchEncoder, state: Mapping[str, Tensor]) -> PatchEncoder:
    encoder.load_state_dict(dict(state), assign=True)
    return encoder


def _from_file(row: Row, path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> PatchEncoder:
    """Build an encoder from a file's content; see ``build_encoder``."""
    name = row.info.name
    tuned = metadata.get(NAME)
    if tuned is not None and tuned != name:
        raise ConfigError(
            f"{path}: holds encoder '{tuned}', not '{name}'", remedy=f"name a file of '{name}', or take '{tuned}'"
        )
    found = dict(tensors) if tuned is not None else plain_names(path, tensors)
    if tuned is None and row.renamed is not None:
        found = row.renamed(found)
    scaled = row.optional_scale and any(key.endswith(_LAYER_SCALE) for key in found)
    encoder = _blank(row, layer_scale=scaled)
    if tuned is not None and "rank" in metadata:
        try:
            add_adapters(encoder, int(metadata["rank"]), float(metadata.get("alpha", "")))
        except ValueError:
            raise DataError(f"{path}: its adapters' rank or alpha is no number", remedy="copy it again") from None
    _filled(encoder, fit(path, found, encoder.state_dict(), row.unused))
    if tuned is not None and encoder_sha256(encoder) != metadata.get(SHA256):
        raise DataError(f"{path}: its weights are not those that were saved", remedy="copy it again")
    return encoder
