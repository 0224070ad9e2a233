"""A plain ``nn.Module`` of somebody else's as a bag model.

What the module's ``forward`` gets and may return:

| | |
|---|---|
| first argument | features (N, D), in the type and on the device of the module's parameters |
| a second one, or one called ``coords`` or ``coordinates`` | coordinates (N, 2), int64 pixels of level 0 |
| returns | logits, or a tuple (logits, attention, slide vector), or a dict or an object with these names |
| logits | (C) or (1, C) |
| attention, may be absent | (N) or (K, N), not negative: each row is divided by its sum; absent means uniform |
| slide vector, may be absent | (L) or (1, L); absent, the logits stand for it |
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fedpath.core.bags.bag import Bag
from fedpath.core.errors import ConfigError
from fedpath.core.models.protocol import BagModel, BagOutput

_PARTS = ("logits", "attention", "slide_vector")
_COORDINATES = ("coords", "coordinates")
_INNER = "module."


class Fault(Protocol):
    """Makes an error that says whose module it is about."""

    def __call__(self, what: str, remedy: str = ...) -> ConfigError:
        """Return the error."""
        ...


class Adapted(BagModel):
    """A bag model around ``module``: cross-entropy, one parameter group ``image``, the module's own names of the state.

    Args:
        module: see the table above.
        n_classes: C.
        fault: makes the errors.

    Raises:
        ConfigError: ``forward`` does not take features, or features and coordinates.
    """

    def __init__(self, module: nn.Module, n_classes: int, fault: Fault) -> None:
        super().__init__()
        self.module = module
        self._n_classes, self._fault = n_classes, fault
        self._coordinates = _coordinates_argument(module.forward, fault)
        # The state goes by the module's own names, so that its weights load into the module itself without fedpath.
        self.register_state_dict_post_hook(_without_prefix)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_with_prefix)  # type: ignore[no-untyped-call]

    def forward(self, bag: Bag) -> BagOutput:
        """Classify one bag.

        Raises:
            ConfigError: the module raises, or returns something else than the table above says.
        """
        like = next(self.module.parameters(), torch.empty(0))
        features_ND = bag.features_ND.to(device=like.device, dtype=like.dtype)
        named = {} if self._coordinates is None else {self._coordinates: bag.coords_N2.to(like.device)}
        try:
            answer = self.module(features_ND, **named)
        except Exception as error:
            raise self._fault(
                f"forward fails on {len(bag)} × {features_ND.shape[1]} features: {in_words(error)}",
                "a bag may hold any number of patches, one too; `fedpath --debug …` shows where it fails",
            ) from error
        logits, attention, slide_vector = self._parts(answer)
        logits_C = self._logits(logits)
        return BagOutput(
            logits_C=logits_C,
            attention_KN=self._attention(attention, len(bag), logits_C),
            slide_vector_L=logits_C if slide_vector is None else self._vector(slide_vector),
        )

    def _parts(self, answer: object) -> list[Any]:
        """Return logits, attention and slide vector, None where absent."""
        if isinstance(answer, Tensor):
            parts: list[Any] = [answer]
        elif isinstance(answer, Mapping):
            parts = [answer.get(name) for name in _PARTS]
        elif hasattr(answer, "logits"):
            parts = [getattr(answer, name, None) for name in _PARTS]
        elif isinstance(answer, tuple) and len(answer) <= len(_PARTS):
            parts = list(answer)
        else:
            length = f" of {len(answer)}" if isinstance(answer, tuple) else ""
            raise self._fault(
                f"forward returns a {type(answer).__name__}{length}",
                f"return logits, or a tuple, a dict or an object with {', '.join(_PARTS)}",
            )
        for name, part in zip(_PARTS, parts, strict=False):
            if not isinstance(part, Tensor) and (part is not None or name == "logits"):
                raise self._fault(
                    f"forward returns {name} that is a {type(part).__name__}, no tensor",
                    f"return logits, or a tuple, a dict or an object with {', '.join(_PARTS)}",
                )
        return parts + [None] * (len(_PARTS) - len(parts))

    def _logits(self, logits: Tensor) -> Tensor:
        if logits.shape not in ((self._n_classes,), (1, self._n_classes)):
            raise self._fault(
                f"forward returns logits of shape {tuple(logits.shape)}",
                f"return one bag's logits: ({self._n_classes},) or (1, {self._n_classes})",
            )
        return logits.reshape(self._n_classes)

    def _attention(self, attention: Tensor | None, n: int, like: Tensor) -> Tensor:
        if attention is None:
            return like.new_full((1, n), 1 / n)
        if attention.ndim not in (1, 2) or attention.shape[-1] != n or attention.numel() == 0:
            raise self._fault(
                f"forward returns attention of shape {tuple(attention.shape)} for {n} patches",
                f"return ({n},), or one row a head: (K, {n})",
            )
        attention_KN = attention.reshape(-1, n)
        if not bool(((attention_KN >= 0) & attention_KN.isfinite()).all()):
            raise self._fault("forward returns attention below 0 or not finite", "return weights: softmax raw scores")
        sums_K1 = attention_KN.sum(dim=1, keepdim=True)
        # Dropout on the weights can take all of a small bag; dividing by 1 there keeps gradients finite.
        is_some_K1 = sums_K1 > 0
        return torch.where(is_some_K1, attention_KN / torch.where(is_some_K1, sums_K1, 1), 1 / n)

    def _vector(self, vector: Tensor) -> Tensor:
        if vector.ndim not in (1, 2) or vector.numel() != vector.shape[-1]:
            raise self._fault(
                f"forward returns a slide vector of shape {tuple(vector.shape)}", "return one vector: (L,) or (1, L)"
            )
        return vector.reshape(-1)


def in_words(error: Exception) -> str:
    """Return type and first line of an exception."""
    return ": ".join(filter(None, (type(error).__name__, next(iter(str(error).splitlines()), ""))))


def _coordinates_argument(forward: Callable[..., object], fault: Fault) -> str | None:
    """Return the name under which ``forward`` takes coordinates; None when it takes features alone."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    try:
        parameters = list(inspect.signature(forward).parameters.values())[1:]
    except ValueError:  # a scripted module has no signature to look at
        return None
    required = {one.name: one.default is inspect.Parameter.empty for one in parameters if one.kind in kinds}
    name = next((name for name in required if name in _COORDINATES), None)
    # Another second parameter with a default (a label, a switch) is not ours to fill.
    name = name or next((name for name, is_required in required.items() if is_required), None)
    if more := [other for other, is_required in required.items() if is_required and other != name]:
        raise fault(f"forward also asks for {', '.join(more)}", "give them defaults: there is more than features")
    return name


def _without_prefix(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
    inner = [(key, state.pop(key)) for key in list(state) if key.startswith(prefix + _INNER)]
    state.update({prefix + key.removeprefix(prefix + _INNER): value for key, value in inner})


def _with_prefix(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    inner = [(key, state.pop(key)) for key in list(state) if key.startswith(prefix)]
    state.update({prefix + _INNER + key.removeprefix(prefix): value for key, value in inner})
