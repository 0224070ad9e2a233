"""One cell of a hospital's table becomes a value of the federation's field, or a state that says why it is none.

| state | the cell |
|---|---|
| ``present`` | is a value of the field |
| ``missing`` | is empty, or a word that site.toml lists as ``missing`` |
| ``out_of_vocabulary`` | is a word that the field does not know, as it stands or through ``codes`` |
| ``out_of_range`` | is a number outside the field's range, after ``factor`` |
| ``not_a_number`` | is text where a number should be: "<10%", "5.2 cm", another decimal sign |

To the model, everything that is not present is missing.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, Self

from fedpath.core.config.clinical import ClinicalField, MappedColumn, NumberField, plain, words_of
from fedpath.core.errors import DataError, did_you_mean

State = Literal["present", "missing", "out_of_vocabulary", "out_of_range", "not_a_number"]
UNUSABLE: tuple[State, ...] = ("out_of_vocabulary", "out_of_range", "not_a_number")
"""States of cells that say something which the field does not know."""
STATES: tuple[State, ...] = ("present", "missing", *UNUSABLE)


@dataclass(frozen=True, slots=True)
class Reading:
    """What became of a cell."""

    state: State
    value: float = 0.0
    """As ``ClinicalRecord.values_F`` has it; 0 unless the state is present."""


_MISSING = Reading("missing")


@dataclass(frozen=True, slots=True)
class FieldReader:
    """Reads the cells of one column as one field."""

    field: ClinicalField
    column: MappedColumn
    decimal: str
    missing: frozenset[str]
    """Plain words, see ``plain``."""
    value_of: dict[str, float]
    """Plain words of the federation and of the hospital → index of the word."""

    @classmethod
    def of(
        cls, name: str, field: ClinicalField, column: MappedColumn, *, decimal: str = ".", missing: Iterable[str] = ()
    ) -> Self:
        """Make the reader of a mapped field.

        Raises:
            DataError: the mapping does not fit the field: codes of a number, a factor of a word, a code that leads to
                a word which the field does not know.
        """
        words = words_of(field)
        key = f"site.toml: key 'clinical.columns.{name}"
        if isinstance(field, NumberField) and column.codes:
            raise DataError(f"{key}.codes': '{name}' is a number", remedy="codes are for words; remove them")
        if words and column.factor != 1:
            raise DataError(f"{key}.factor': '{name}' is a word of: {', '.join(words)}", remedy="remove the factor")
        value_of = {plain(word): float(index) for index, word in enumerate(words)}
        for theirs, ours in column.codes.items():
            if plain(ours) not in value_of:
                remedy = did_you_mean(ours, words, f"the federation's words: {', '.join(words)}")
                raise DataError(f"{key}.codes.{theirs}' = '{ours}': not a word of that field", remedy=remedy)
        # The hospital's codes come first: where it writes 1 and 2, its 1 need not be the federation's.
        value_of |= {plain(theirs): value_of[plain(ours)] for theirs, ours in column.codes.items()}
        return cls(field, column, decimal, frozenset(map(plain, missing)) | {""}, value_of)

    def __call__(self, cell: str) -> Reading:
        """Read a cell."""
        word = plain(cell)
        if isinstance(self.field, NumberField):
            return _MISSING if word in self.missing else self._number(cell, self.field)
        # A word of the field is a word, even where a hospital writes "unknown" for an empty cell elsewhere.
        if word in self.value_of:
            return Reading("present", self.value_of[word])
        return _MISSING if word in self.missing else Reading("out_of_vocabulary")

    def _number(self, cell: str, field: NumberField) -> Reading:
        sign = re.escape(self.decimal)
        text = cell.strip().replace("\N{MINUS SIGN}", "-")
        if re.fullmatch(rf"[+-]?([0-9]+({sign}[0-9]*)?|{sign}[0-9]+)([eE][+-]?[0-9]{{1,9}})?", text) is None:
            return Reading("not_a_number")
        amount = text.replace(self.decimal, ".")
        if math.isinf(float(amount)):
            return Reading("out_of_range")
        # In decimals, so that 1.1 m × 100 are the 110 cm that the range may end at.
        value = float(Decimal(amount) * Decimal(repr(self.column.factor)))
        inside = field.minimum <= value <= field.maximum
        return Reading("present", value) if inside else Reading("out_of_range")
