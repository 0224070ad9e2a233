"""What the coordinator makes of the sites' clinical statistics, and what it does not believe."""

import json
from typing import Any

import pytest

from fedpath.core.clinical.standard import ClinicalStatistics, FieldStatistics
from fedpath.core.config.clinical import BinaryField, ClinicalSchema, NumberField
from fedpath.core.exchange.contract import FeatureContract
from fedpath.core.exchange.messages import Description
from fedpath.server.clinical import Agreement, fault_of

SCHEMA = ClinicalSchema(
    fields={
        "age": NumberField(type="number", unit="years", minimum=18, maximum=110, outcome_derived=False),
        "er": BinaryField(type="binary", positive="yes", negative="no", outcome_derived=False),
        "size": NumberField(type="number", unit="mm", minimum=0, maximum=200, outcome_derived=False),
    }
)
AGES, OTHER_AGES = [40.0, 50.0, 90.0], [30.0, 60.0]


def described(statistics: ClinicalStatistics | None, patients: int = 10) -> Description:
    return Description(
        contract=FeatureContract(encoder="e", encoder_sha256="0", width=4, mpp=None, patch_px=None, transform="t"),
        patients={"train": patients, "validation": 1, "test": 1},
        slides={"train": patients, "validation": 1, "test": 1},
        version="0.1.0",
        clinical=statistics,
    )


def ages(values: list[float]) -> FieldStatistics:
    return FieldStatistics(count=len(values), sum=sum(values), sum_squares=sum(value**2 for value in values))


ACCEPTED = {
    "B": described(ClinicalStatistics(patients=4, fields={"age": ages(OTHER_AGES)})),
    "C": described(None),
    "A": described(
        ClinicalStatistics(patients=3, fields={"age": ages(AGES), "er": FieldStatistics(count=3, words=[1, 2])})
    ),
}


def test_the_standard_is_that_of_all_rows_and_says_who_gave_it() -> None:
    agreement = Agreement.of(SCHEMA, ACCEPTED)
    together = AGES + OTHER_AGES
    mean = sum(together) / 5
    assert agreement.standard.mean == {"age": pytest.approx(mean, rel=1e-12)}
    variance = sum((age - mean) ** 2 for age in together) / 5
    assert agreement.standard.sd == {"age": pytest.approx(variance**0.5, rel=1e-12)}
    assert agreement.in_words() == (
        "clinical data of 7 training patients at A, B; none reported by C; age from 2, er from 1; not read: size"
    )
    record = json.loads(json.dumps(agreement.record()))
    assert record["says"] == agreement.in_words()
    assert (record["patients"], record["sites"], record["sites_without"]) == (7, {"A": 3, "B": 4}, ["C"])
    assert record["fields"]["age"]["sites"] == ["A", "B"]
    assert record["fields"]["er"] == {"sites": ["A"], "mean": None, "sd": None, "shares": [1 / 3, 2 / 3]}
    assert record["fields"]["size"] == {"sites": [], "mean": None, "sd": None, "shares": None}


def test_no_field_can_be_read_where_too_few_have_each() -> None:
    schema = ClinicalSchema(fields={"age": SCHEMA.fields["age"]})
    agreement = Agreement.of(schema, {"A": described(ClinicalStatistics(patients=8, fields={}))})
    assert agreement.in_words() == (
        "clinical data of 8 training patients at A; no field can be read: only the single-modal branch is trained"
    )


def test_nobody_has_clinical_data() -> None:
    agreement = Agreement.of(SCHEMA, {"A": described(None), "B": described(None)})
    assert agreement.standard.patients == 0
    assert agreement.in_words() == "no site reports clinical data: only the single-modal branch is trained"
    # A latecomer that has some changes nothing: no hospital's model can read it.
    assert agreement.counted(ACCEPTED["A"]) == 0


def test_a_latecomer_counts_where_there_is_a_standard() -> None:
    agreement = Agreement.of(SCHEMA, {"A": ACCEPTED["A"]})
    assert (agreement.counted(ACCEPTED["B"]), agreement.counted(ACCEPTED["C"])) == (4, 0)


def test_what_can_be_true_passes() -> None:
    for description in ACCEPTED.values():
        assert fault_of(description, SCHEMA) is None
    assert fault_of(described(None), None) is None


@pytest.mark.parametrize(
    ("patients", "fields", "fault"),
    [
        (11, {}, "it describes clinical data of 11 training patients, and has 10"),
        (9, {"\x1b[2J": ages(AGES)}, "it describes clinical fields that the federation does not declare"),
        (2, {"age": ages(AGES)}, "clinical statistics of 'age' are impossible: 3 of 2 patients have it"),
        (
            9,
            {"age": ages([200.0])},
            "clinical statistics of 'age' are impossible: a mean of 200 outside 18 to 110 years",
        ),
        (9, {"er": FieldStatistics(count=3, words=[1, 1])}, "clinical statistics of 'er' are impossible: words of 2"),
    ],
)
def test_what_cannot_be_true_is_said(patients: int, fields: dict[str, Any], fault: str) -> None:
    said = fault_of(described(ClinicalStatistics(patients=patients, fields=fields)), SCHEMA)
    assert said is not None
    assert said.startswith(fault)


def test_statistics_that_nobody_asked_for() -> None:
    assert fault_of(ACCEPTED["A"], None) == "it describes clinical data, and the model reads none"
