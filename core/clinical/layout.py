"""Where each field of the schema lies in the vector that a model reads.

| field | entries |
|---|---|
| number | its standardised value; 1 when it is missing |
| category of V words | 1 for its word, V entries; 1 when it is missing |
| binary | as a category of (negative, positive) |

A missing field sets its own entry and no value: to the first layer of a model that is a learned state of the field.
"""

from dataclasses import dataclass
from typing import Self

from fedpath.core.config.clinical import ClinicalSchema, NumberField, words_of


@dataclass(frozen=True, slots=True)
class Layout:
    """The entries of each field; see the module's docstring."""

    names: tuple[str, ...]
    """Of the F fields."""
    is_number: tuple[bool, ...]
    value_at: tuple[int, ...]
    """Entry of a number's value, or of the first word."""
    missing_at: tuple[int, ...]
    """Entry of the field's missing state."""
    n_entries: int
    """E."""

    @classmethod
    def of(cls, schema: ClinicalSchema) -> Self:
        """Lay the fields of a schema out in its order."""
        value_at, missing_at, start = [], [], 0
        for field in schema.fields.values():
            value_at.append(start)
            missing_at.append(start + (len(words_of(field)) or 1))
            start = missing_at[-1] + 1
        is_number = tuple(isinstance(field, NumberField) for field in schema.fields.values())
        return cls(tuple(schema.fields), is_number, tuple(value_at), tuple(missing_at), start)
