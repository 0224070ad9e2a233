"""``[clinical]`` of both files: federation.toml says what there may be and how it is coded, site.toml where it is.

The schema holds for all hospitals; each maps its own columns and words to it. A field's order in the schema is its
place in the model.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from fedpath.core.config.loading import FilePath, Section

FieldName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_\-]{0,62}$")]
Word = Annotated[str, Field(min_length=1, max_length=200, pattern=r"\S")]


def plain(word: str) -> str:
    """Return what two words share when they are the same: case, spaces around and a spreadsheet's ".0" do not count."""
    word = " ".join(word.split()).casefold()
    return re.sub(r"^(-?[0-9]+)(?:\.0+|,0)$", r"\1", word)


class _Declared(Section):
    """What every field states."""

    outcome_derived: bool
    """Whether the value is only known from the outcome that is predicted, or after it: such a field is refused."""

    @field_validator("outcome_derived")
    @classmethod
    def _does_not_tell_the_outcome(cls, outcome_derived: bool) -> bool:
        if outcome_derived:
            raise PydanticCustomError(
                "outcome_derived",
                "this field is derived from the outcome, and a model that reads it is told what it should predict",
                {"remedy": "take the field out of federation.toml; the hospitals may keep the column"},
            )
        return outcome_derived


Bound = Annotated[float, Field(ge=-1e15, le=1e15)]
"""Of a range. Far above any quantity, and its squares are far below what a float32 holds: so are a model's numbers."""


class NumberField(_Declared):
    """A quantity with a unit; the range is what gives a mix-up of units away."""

    type: Literal["number"]
    unit: Word
    minimum: Bound
    maximum: Bound
    """Smallest and largest plausible value; what lies outside counts as out of range, and as missing."""

    @model_validator(mode="after")
    def _range_has_room(self) -> Self:
        if self.minimum >= self.maximum:
            raise ValueError(f"minimum {self.minimum:g} is not below maximum {self.maximum:g}")
        return self


def _no_word_twice(words: list[str]) -> list[str]:
    if len({plain(word) for word in words}) != len(words):
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
        if plain(self.positive) == plain(self.negative):
            raise ValueError("positive and negative are the same code")
        return self


ClinicalField = Annotated[NumberField | CategoryField | BinaryField, Field(discriminator="type")]


class ClinicalSchema(Section):
    """The clinical fields of a federation."""

    fields: Annotated[dict[FieldName, ClinicalField], Field(min_length=1, max_length=200)]


def words_of(field: ClinicalField) -> tuple[str, ...]:
    """Return a field's words in the order of their indices: a vocabulary, (negative, positive), none for a number."""
    match field:
        case CategoryField():
            return tuple(field.vocabulary)
        case BinaryField():
            return field.negative, field.positive
        case NumberField():
            return ()


def _no_code_twice(codes: dict[str, str]) -> dict[str, str]:
    if len({plain(word) for word in codes}) != len(codes):
        raise ValueError("a word of the hospital is listed twice: case and a final .0 make no difference")
    return codes


class MappedColumn(Section):
    """Where a hospital keeps a field, and how its words or unit become the federation's."""

    column: Word
    """Heading of the column."""
    codes: Annotated[dict[str, Word], AfterValidator(_no_code_twice)] = Field(default_factory=dict)
    """The hospital's word → the federation's, of a category or binary field; words that are the same need none."""
    factor: Annotated[float, Field(gt=0)] = 1.0
    """What a number is multiplied by to be in the federation's unit."""


def _column_alone(value: Any) -> Any:
    """A heading on its own is short for a column without codes or factor."""
    return {"column": value} if isinstance(value, str) else value


class ClinicalSection(Section):
    """A hospital's clinical table. Only the mapped columns are read."""

    table: FilePath
    """CSV or .xlsx, one patient a row; relative to site.toml."""
    patient_column: Word = "patient_id"
    """Heading of the column that names the patient as the manifest does."""
    sheet: str | None = None
    """Of an Excel file; the first when absent."""
    decimal: Literal[".", ","] = "."
    """What separates a number's decimals, where it is text."""
    missing: list[str] = Field(
        default_factory=lambda: ["", "NA", "N/A", "#N/A", "NaN", "null", "unknown", "not known", "missing", "-", "?"]
    )
    """Cells that mean: not known. Compared as words are; an empty cell always is."""
    max_unusable: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Largest share of a field's filled cells that may be unusable; beyond it the mapping is taken for wrong."""
    columns: Annotated[
        dict[FieldName, Annotated[MappedColumn, BeforeValidator(_column_alone)]], Field(min_length=1, max_length=200)
    ]
    """Field of the federation → column of the table."""
