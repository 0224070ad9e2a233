"""Files of weights: read without running anything from them, and brought to an encoder's own names.

Published files wrap and prefix their tensors in a few ways; what is not needed for features (classifiers, counters of
batches) is left out. Everything else must fit exactly: a file of another architecture is refused with the names that
differ.
"""

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedpath.core.errors import DataError

_WRAPPERS = ("state_dict", "model_state_dict", "model", "teacher")
"""Under one of these keys a training script's checkpoint holds its weights; DINO's features are its teacher's."""
_PREFIXES = ("module.", "model.", "backbone.", "encoder.", "teacher.")
"""Of names: what wrapped the encoder when it was saved. No name of an encoder here begins so."""
_COUNTER = "num_batches_tracked"
_SHOWN = 3
_COPY = "copy or download it again"


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file or of a torch file, as stored, and the metadata (of safetensors).

    Files are recognised by content, not by name.

    Raises:
        DataError: no such file, truncated, neither of the two, or a torch file that holds more than weights.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file of weights", remedy="check the path") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}", remedy="name a file of weights") from None
    # A safetensors file is the length of its header (8 bytes), then the header, JSON.
    if start[8:] == b"{":
        return _read_safetensors(path)
    if not start.startswith((b"PK", b"\x80")):  # a zip archive, or a pickle
        raise DataError(
            f"{path}: neither a safetensors nor a torch file of weights", remedy="name the encoder's file of weights"
        )
    return _unwrapped(path, _read_torch(path)), {}


def fit(
    path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], unused: Iterable[str]
) -> dict[str, Tensor]:
    """Return the tensors of a file under an encoder's names: float32, contiguous, all of them and no others.

    Args:
        path: named in errors.
        found: what the file holds, by plain names (``plain_names``).
        wanted: the encoder's state; its shapes are what counts (meta tensors will do).
        unused: prefixes of names to leave out.

    Raises:
        DataError: names are missing or unknown, a tensor has another shape, is no float, or holds NaN or infinity.
    """
    left_out = tuple(unused)
    kept = {
        name: tensor
        for name, tensor in found.items()
        if name in wanted or not (name.startswith(left_out) or name.endswith(_COUNTER))
    }
    missing = [name for name in wanted if name not in kept]
    unexpected = [name for name in kept if name not in wanted]
    if missing or unexpected:
        told = [f"lacks {_some(missing)}"] if missing else []
        told += [f"has {_some(unexpected)} too many"] if unexpected else []
        raise DataError(
            f"{path}: not the weights of this architecture: it {' and '.join(told)}",
            remedy="name the file of the encoder that --encoder or features.encoder names"
            + ("; these have register tokens: take an encoder that does" if "reg_token" in unexpected else ""),
        )
    for name, like in wanted.items():
        tensor = kept[name]
        if tensor.shape != like.shape:
            raise DataError(
                f"{path}: {name} is {_shape(tensor)}, this encoder's is {_shape(like)}",
                remedy="these are weights of another width or patch size; name those of this encoder",
            )
        if not tensor.is_floating_point():
            raise DataError(
                f"{path}: {name} is of type {tensor.dtype}", remedy="name unquantised weights (float32 or float16)"
            )
        if not torch.isfinite(tensor).all():
            raise DataError(f"{path}: {name} holds NaN or infinite values", remedy=_COPY)
    # Copies: tensors of a file may be views of one block, or be laid out otherwise.
    return {name: kept[name].detach().float().clone(memory_format=torch.contiguous_format) for name in wanted}


def plain_names(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors without what wrapped them in their names (`module.`, `backbone.`, …).

    Raises:
        DataError: two tensors would get one name.
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = name
        while prefix := next((prefix for prefix in _PREFIXES if short.startswith(prefix)), None):
            short = short.removeprefix(prefix)
        if short in plain:
            raise DataError(
                f"{path}: holds '{short}' more than once ({name})", remedy="save the encoder's own weights alone"
            )
        plain[short] = tensor
    return plain


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 - no dict
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not a whole safetensors file: {error}", remedy=_COPY) from None


def _read_torch(path: Path) -> Any:
    try:
        with path.open("rb") as file:  # by its path, torch would judge it by its name
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{path}: not a torch file of weights alone: {reason}",
            remedy="save its state dict alone (torch.save(model.state_dict(), …)): other content is never run",
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"{path}: not a whole torch file of weights: {reason}", remedy=_COPY) from None


def _unwrapped(path: Path, content: Any) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    while isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        content = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
    if not tensors:
        raise DataError(f"{path}: holds no weights by name", remedy="save a state dict (model.state_dict())")
    return tensors


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"
