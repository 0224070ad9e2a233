"""The encodings of the wire, a number at a time, without the code under test."""

import math
import struct
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray


def float16(number: float) -> float:
    """IEEE 754 binary16, as Python's struct writes it."""
    back: float = struct.unpack("<e", struct.pack("<e", number))[0]
    return back


def bfloat16(number: float) -> float:
    """Of the two float32s around it with lower 16 bits of 0, the nearer one; in the middle, the one that is even."""
    (bits,) = struct.unpack("<I", struct.pack("<f", number))
    below = bits >> 16

    def value(upper: int) -> float:
        number: float = struct.unpack("<f", struct.pack("<I", upper << 16))[0]
        return number

    low, high = Fraction(value(below)), Fraction(value(below + 1))
    to_low, to_high = abs(Fraction(number) - low), abs(high - Fraction(number))
    if to_low == to_high:
        return value(below + below % 2)
    return value(below) if to_low < to_high else value(below + 1)


def int8(values: NDArray[np.float32], draws: Sequence[float]) -> tuple[list[int], np.float32]:
    """⌊x / s + u⌋ with the smallest float32 s whose 127-fold is not below max|x|; and s."""
    largest = max(abs(float(number)) for number in values.reshape(-1))
    near = np.float32(largest / 127)
    scale = next(
        step
        for step in (np.nextafter(near, np.float32(0)), near, np.nextafter(near, np.float32(np.inf)))
        if float(step) * 127 >= largest
    )
    numbers = map(float, values.reshape(-1))
    return [math.floor(number / float(scale) + u) for number, u in zip(numbers, draws, strict=True)], scale
