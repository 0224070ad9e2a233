"""One cell: a value, or the state that says why it is none."""

from typing import Any

import pytest

from fedpath.core.cohort.clinical.fields import FieldReader, Reading
from fedpath.core.config.clinical import BinaryField, CategoryField, MappedColumn, NumberField
from fedpath.core.errors import DataError

HEIGHT = NumberField(type="number", unit="cm", minimum=50, maximum=250, outcome_derived=False)
SHIFT = NumberField(type="number", unit="mm", minimum=-5, maximum=5, outcome_derived=False)
GRADE = CategoryField(type="category", vocabulary=["1", "2", "3", "unknown origin"], outcome_derived=False)
ER = BinaryField(type="binary", positive="positive", negative="negative", outcome_derived=False)
MISSING = ["", "NA", "unknown", "-", "999"]


def reader(field: Any, *, decimal: str = ".", **column: Any) -> FieldReader:
    mapped = MappedColumn.model_validate({"column": "x"} | column)
    return FieldReader.of("f", field, mapped, decimal=decimal, missing=MISSING)


@pytest.mark.parametrize(
    ("cell", "value"),
    [("172", 172.0), (" 172.50 ", 172.5), ("+172", 172), ("1.72e2", 172), ("1.72E+2", 172), ("50", 50), ("250.0", 250)],
)
def test_a_number(cell: str, value: float) -> None:
    assert reader(HEIGHT)(cell) == Reading("present", value)


@pytest.mark.parametrize(
    ("cell", "state"),
    [
        ("", "missing"),
        ("  ", "missing"),
        ("na", "missing"),
        ("Unknown", "missing"),
        ("999", "missing"),
        ("999.0", "missing"),
        ("49.9", "out_of_range"),
        ("250.1", "out_of_range"),
        ("1.72", "out_of_range"),
        ("-172", "out_of_range"),
        ("1e400", "out_of_range"),
        ("1e999999999", "out_of_range"),
        ("1e-999999999", "out_of_range"),
        ("<10%", "not_a_number"),
        (">170", "not_a_number"),
        ("172 cm", "not_a_number"),
        ("172,5", "not_a_number"),
        ("1,000", "not_a_number"),
        ("1 72", "not_a_number"),
        ("inf", "not_a_number"),
        ("nan", "not_a_number"),
        ("0x50", "not_a_number"),
        ("1_72", "not_a_number"),
        ("١٧٢", "not_a_number"),
        ("1e", "not_a_number"),
        ("1e9999999999", "not_a_number"),
        (".", "not_a_number"),
        ("2024-03-01", "not_a_number"),
        ("true", "not_a_number"),
    ],
)
def test_a_cell_that_is_no_number_of_the_field(cell: str, state: Any) -> None:
    assert reader(HEIGHT)(cell) == Reading(state)


def test_signs() -> None:
    assert reader(SHIFT)("-.5") == Reading("present", -0.5)
    assert reader(SHIFT)("\N{MINUS SIGN}2") == Reading("present", -2)


def test_a_decimal_comma() -> None:
    read = reader(HEIGHT, decimal=",")
    assert read("172,5") == Reading("present", 172.5)
    assert read("172") == Reading("present", 172.0)
    assert read("172.5") == Reading("not_a_number")
    assert read("1.172,5") == Reading("not_a_number")


def test_the_factor_comes_before_the_range() -> None:
    read = reader(HEIGHT, factor=100)
    assert read("1.72") == Reading("present", 172.0)
    assert read("172") == Reading("out_of_range")
    # 1.1 × 100 in floats is 110.00000000000001
    top = NumberField(type="number", unit="cm", minimum=0, maximum=110, outcome_derived=False)
    assert reader(top, factor=100)("1.1") == Reading("present", 110.0)


@pytest.mark.parametrize(
    ("cell", "value"), [("1", 0.0), ("1.0", 0.0), ("2", 1.0), ("3,0", 2.0), ("UNKNOWN  Origin", 3.0)]
)
def test_a_word_of_the_vocabulary(cell: str, value: float) -> None:
    assert reader(GRADE)(cell) == Reading("present", value)


def test_words_beside_the_vocabulary() -> None:
    read = reader(GRADE, codes={"G1": "1", "0": "1", "not graded": "unknown origin"})
    assert read("g1") == Reading("present", 0.0)
    assert read("0.0") == Reading("present", 0.0)
    assert read("2") == Reading("present", 1.0)
    assert read("Not graded") == Reading("present", 3.0)
    assert read("G2") == Reading("out_of_vocabulary")
    assert read("1.5") == Reading("out_of_vocabulary")
    assert read("unknown") == Reading("missing")
    assert read("") == Reading("missing")


def test_a_word_of_the_vocabulary_is_not_missing() -> None:
    field = CategoryField(type="category", vocabulary=["known", "unknown"], outcome_derived=False)
    assert reader(field)("unknown") == Reading("present", 1.0)
    assert reader(ER, codes={"-": "negative"})("-") == Reading("present", 0.0)


def test_a_hospitals_codes_come_before_the_same_words_of_the_federation() -> None:
    # This hospital's 1 is the federation's 2.
    read = reader(GRADE, codes={"1": "2", "2": "3"})
    assert (read("1").value, read("2").value, read("3").value) == (1.0, 2.0, 2.0)


def test_binary_fields() -> None:
    read = reader(ER, codes={"pos": "positive", "1": "Positive", "0": "negative"})
    assert [read(cell).value for cell in ("positive", "POS", "1", "1.0")] == [1.0] * 4
    assert [read(cell) for cell in ("negative", "0", "0.0")] == [Reading("present", 0.0)] * 3
    assert read("borderline") == Reading("out_of_vocabulary")
    assert read("-") == Reading("missing")


def test_an_empty_cell_is_missing_whatever_the_hospital_lists() -> None:
    read = FieldReader.of("f", ER, MappedColumn(column="x"), missing=["none"])
    assert read("") == Reading("missing")
    assert read("None") == Reading("missing")


@pytest.mark.parametrize(
    ("field", "column", "key", "remedy"),
    [
        (HEIGHT, {"codes": {"tall": "200"}}, "clinical.columns.f.codes'", "remove them"),
        (GRADE, {"factor": 10.0}, "clinical.columns.f.factor'", "remove the factor"),
        (ER, {"codes": {"pos": "positve"}}, "clinical.columns.f.codes.pos' = 'positve'", "did you mean 'positive'?"),
        (ER, {"codes": {"pos": "1"}}, "clinical.columns.f.codes.pos' = '1'", "negative, positive"),
    ],
)
def test_a_mapping_that_does_not_fit_the_field(field: Any, column: dict[str, Any], key: str, remedy: str) -> None:
    with pytest.raises(DataError) as caught:
        reader(field, **column)
    assert f"site.toml: key '{key}" in caught.value.message
    assert remedy in caught.value.remedy
