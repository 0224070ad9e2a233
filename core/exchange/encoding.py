"""A site's update as `[exchange]` wants it on the wire, and what that leaves out of it: the residual.

What an encoding loses of one update is added to the next: with the true update x and the residual e, the site sends
Q(x + e) and keeps e ← (x + e) − Q(x + e). So the sum of all that was sent is the sum of all true changes but for one
residual, however many rounds there were (error feedback: Seide et al., Interspeech 2014; Karimireddy et al., ICML 2019,
"Error Feedback Fixes SignSGD"; float16 and bfloat16 gain as int8 does: weights that move by less than a rounding step a
round would stand still without it). float32 has no residual.

- float16, bfloat16: round to nearest, ties to even.
- int8: q = ⌊x / s + u⌋ with the array's scale s = max|x| / 127 and u uniform in [0, 1): stochastic rounding, whose
  expectation is x (Alistarh et al., NeurIPS 2017, "QSGD"). Always changes: of weights, a step s is more than a round's
  change. u comes from a seed, so that an order that is carried out again gives the same bits.

Vectors (biases, norms, running statistics, whose variance must not become negative), single numbers (counters) and
arrays of a few numbers travel in float32 whatever the encoding: they are a small part of any model. So does an array
that the type cannot hold: beyond its range, below its precision, not finite, or rounded to just the model that came.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpath.core.config.federated import Encoding, ExchangeSection
from fedpath.core.exchange.groups import CONTROL
from fedpath.core.exchange.stored import BLOCK, CHANGES, F32, SCALES, WireArrays, metadata_of
from fedpath.core.exchange.wire import Arrays

RESIDUAL = "residual:"
"""Before an array's name: what its encoding has left out so far."""
_FEW = 64
"""Numbers: the scale of an array, with its name, takes about as many bytes as int8 saves on a few dozen."""
_LONGEST_VECTOR = 1 << 14
"""Numbers: longer than the vector of any layer; a model that keeps all its weights in one vector is encoded."""
_MOST_LOST = 1 / 64
"""Of an array's largest number: int8 loses 1/127 at most; an array that loses more than this travels in float32."""
_LEVELS = 127
_HUGE = float(np.finfo(np.float32).max) / 2
"""No int8 array holds as large a number: its scale would have no room for the rounding."""
_ENCODED: Mapping[str, Encoding] = {"float16": "float16", "uint16": "bfloat16", "int8": "int8"}
"""Encodings by numpy's types of their arrays."""


@dataclass(frozen=True, slots=True)
class Written:
    """An update on the wire."""

    arrays: WireArrays
    residual: Arrays
    """By `RESIDUAL` + name; what is kept with the update, for the next one. Also that of arrays that were not sent."""


def sends_changes(exchange: ExchangeSection) -> bool:
    """Return whether updates hold changes against the model that came, rather than weights."""
    return exchange.changes_only or exchange.encoding == "int8"


def write_update(
    trained: Arrays, base: Arrays, exchange: ExchangeSection, *, residual: Mapping[str, F32], seed: int
) -> Written:
    """Write an update as ``exchange`` says.

    Args:
        trained: what is sent, float32, by "group/parameter"; and the changes of SCAFFOLD's control variates, by
            `CONTROL` + name.
        base: the model that came; holds at least the arrays of ``trained``, but for the control variates.
        exchange: encoding, and whether changes are sent.
        residual: of the last update of this site that counted (`Written.residual`); other names are not looked at.
        seed: of stochastic rounding.
    """
    changes = sends_changes(exchange)
    left = {name: array for name, array in residual.items() if name.startswith(RESIDUAL)}
    arrays: Arrays = {}
    scales: dict[str, float] = {}
    for name, array in trained.items():
        reference = None if name.startswith(CONTROL) else base[name]
        values = np.asarray(array - reference) if changes and reference is not None else array
        if exchange.encoding == "float32" or _stays_exact(values):
            arrays[name] = values
            continue
        error = left.pop(RESIDUAL + name, None)
        total = values if error is None else values + error
        arrays[name], scale = _ENCODERS[exchange.encoding](total, _generator(seed, name))
        arrives = decoded(arrays[name], scale)
        unmoved = not changes and reference is not None and np.array_equal(arrives, reference)
        with np.errstate(invalid="ignore"):  # the coordinator says what it thinks of numbers that are not finite
            error = np.subtract(total, arrives, out=arrives)
            lost, largest = np.abs(error).max(), np.abs(total).max()
        held = np.isfinite(lost) and lost <= _MOST_LOST * largest
        if not held or (unmoved and lost > 0):
            arrays[name] = total
            continue
        if arrays[name].dtype == np.int8:
            scales[name] = _shortest(scale)
        if lost > 0:
            left[RESIDUAL + name] = error
    metadata = {CHANGES: "true"} if changes else {}
    if scales:
        metadata[SCALES] = json.dumps(scales, sort_keys=True, separators=(",", ":"))
    return Written(WireArrays(arrays, metadata), left)


def in_words(arrays: Arrays) -> str:
    """Return how an update's arrays are written, for readers: "int8 changes", "float32 weights"."""
    types = {array.dtype.name for array in arrays.values()}
    encoding = next((encoding for dtype, encoding in _ENCODED.items() if dtype in types), "float32")
    return f"{encoding} {'changes' if metadata_of(arrays).get(CHANGES) == 'true' else 'weights'}"


def decoded(written: NDArray[Any], scale: np.float32) -> F32:
    """Return what an encoded array stands for, as `fedpath.core.exchange.stored.ArrayFile` reads it."""
    if written.dtype == np.uint16:
        return (written.astype(np.uint32) << 16).view(np.float32)
    numbers: F32 = written.astype(np.float32)
    return numbers * scale if written.dtype == np.int8 else numbers


def _stays_exact(array: F32) -> bool:
    return array.size <= _FEW or (array.ndim < 2 and array.size <= _LONGEST_VECTOR)


def _float16(values: F32, _random: np.random.Generator) -> tuple[NDArray[Any], np.float32]:
    with np.errstate(over="ignore"):  # beyond 65504 it is infinite, and the array travels in float32
        return values.astype(np.float16), np.float32(1)


def _bfloat16(values: F32, _random: np.random.Generator) -> tuple[NDArray[Any], np.float32]:
    """Round to the upper half of the float32: up from above the middle, and from the middle where that makes it even.

    In integers, since processors' own instructions take subnormal numbers for 0. What a NaN becomes does not matter.
    """
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16), np.float32(1)


def _int8(values: F32, random: np.random.Generator) -> tuple[NDArray[Any], np.float32]:
    """Round stochastically to multiples of the scale, a block at a time in float64: float32 would bias the draw."""
    flat = values.reshape(-1)
    largest = float(max(flat.max(), -flat.min()))
    written = np.zeros(flat.size, np.int8)
    if not 0 < largest < _HUGE:
        return written.reshape(values.shape), np.float32(1)
    scale = np.float32(largest / _LEVELS)
    while float(scale) * _LEVELS < largest:  # a scale that was rounded down would not reach the largest number
        scale = np.nextafter(scale, np.float32(np.inf))
    for start in range(0, flat.size, BLOCK):
        steps = flat[start : start + BLOCK].astype(np.float64)
        steps /= scale
        steps += random.random(len(steps))
        np.floor(steps, out=steps)
        # 127 + u rounds to 128 for a u that is 1 but for the last bit.
        written[start : start + BLOCK] = np.minimum(steps, _LEVELS, out=steps)
    return written.reshape(values.shape), scale


_ENCODERS = {"float16": _float16, "bfloat16": _bfloat16, "int8": _int8}


def _generator(seed: int, name: str) -> np.random.Generator:
    """Return the generator of one array: what it draws does not depend on which others are sent."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16]))


def _shortest(scale: np.float32) -> float:
    """Return the number with the fewest digits that is this float32."""
    return float(str(scale))
