"""``[clinical]`` of federation.toml: which clinical fields the federation's models may read, and how they are coded.

The schema holds for all hospitals; each maps its own columns and words to it in site.toml. A field's order here is its
place in the model.
"""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from fedpath.core.config.loading import Section

FieldName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_\-]{0,62}$")]
Word = Annotated[str, Field(min_length=1, max_length=200)]


class _Declared(Section):
    """What every field states."""

    outcome_derived: bool
    """Whether the value is only known from the outcome that is predicted, or after it: such a field is refused."""


class NumberField(_Declared):
    """A quantity with a unit; the range is what gives a mix-up of units away."""

    type: Literal["number"]
    unit: Word
    minimum: float
    maximum: float
    """Smallest and largest plausible value; what lies outside counts as out of range, and as missing."""

    @model_validator(mode="after")
    def _range_has_room(self) -> Self:
        if self.minimum >= self.maximum:
            raise ValueError(f"minimum {self.minimum:g} is not below maximum {self.maximum:g}")
        return self


def _no_word_twice(words: list[str]) -> list[str]:
    if len({word.casefold() for word in words}) != len(words):
        raise ValueError("a word is listed twice")
    return words


class CategoryField(_Declared):
    """One word of a vocabulary."""

    type: Literal["category"]
    vocabulary: Annotated[list[Word], Field(min_length=2, max_length=100), AfterValidator(_no_word_twice)]


class BinaryField(_Declared):
    """Yes or no."""

    type: Literal["binary"]
    positive: Word
    """The code that means yes, for example "1" or "positive"."""
    negative: Word

    @model_validator(mode="after")
    def _codes_differ(self) -> Self:
        if self.positive.casefold() == self.negative.casefold():
            raise ValueError("positive and negative are the same code")
        return self


ClinicalField = Annotated[NumberField | CategoryField | BinaryField, Field(discriminator="type")]


class ClinicalSchema(Section):
    """The clinical fields of a federation."""

    fields: Annotated[dict[FieldName, ClinicalField], Field(min_length=1, max_length=200)]

    @model_validator(mode="after")
    def _nothing_tells_the_outcome(self) -> Self:
        for name, field in self.fields.items():
            if field.outcome_derived:
                raise ValueError(
                    f"field '{name}' is derived from the outcome: a model that reads it is told what it should predict"
                )
        return self


def words_of(field: ClinicalField) -> tuple[str, ...]:
    """Return a field's words in the order of their indices: a vocabulary, (negative, positive), none for a number."""
    match field:
        case CategoryField():
            return tuple(field.vocabulary)
        case BinaryField():
            return field.negative, field.positive
        case NumberField():
            return ()
