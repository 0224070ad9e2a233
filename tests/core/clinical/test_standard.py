"""Mean and spread from sums equal those of all rows together; too few patients stay unreported; lies are refused."""

import math

import numpy as np
import pytest
import torch

from fedpath.core.clinical.record import ClinicalRecord
from fedpath.core.clinical.standard import ClinicalStatistics, agree, check_statistics, statistics_of
from fedpath.core.config.clinical import ClinicalSchema
from fedpath.core.errors import RefusedError

SCHEMA = ClinicalSchema.model_validate(
    {
        "fields": {
            "age": {"type": "number", "unit": "years", "minimum": 0, "maximum": 120, "outcome_derived": False},
            "grade": {"type": "category", "vocabulary": ["1", "2", "3"], "outcome_derived": False},
            "er": {"type": "binary", "positive": "yes", "negative": "no", "outcome_derived": False},
            "shift": {"type": "number", "unit": "mm", "minimum": -5, "maximum": 5, "outcome_derived": False},
        }
    }
)


def record(*values: float | None) -> ClinicalRecord:
    return ClinicalRecord(
        torch.tensor([value or 0.0 for value in values], dtype=torch.float64),
        torch.tensor([value is not None for value in values]),
    )


def draw(rng: np.random.Generator, n: int) -> list[ClinicalRecord]:
    """Patients with holes: ages on a large offset, every fourth field unknown."""
    rows = []
    for _ in range(n):
        row = [rng.uniform(60, 61), rng.integers(3), rng.integers(2), rng.uniform(-5, 5)]
        rows.append(record(*(float(value) if rng.random() < 0.75 else None for value in row)))
    return [row for row in rows if bool(row.present_F.any())]


def said(records: list[ClinicalRecord], min_patients: int = 1) -> ClinicalStatistics:
    statistics = statistics_of(SCHEMA, records, min_patients=min_patients)
    assert statistics is not None
    return statistics


@pytest.mark.parametrize("seed", range(5))
def test_the_agreement_is_that_of_all_rows_together(seed: int) -> None:
    rng = np.random.default_rng(seed)
    hospitals = [draw(rng, n) for n in (40, 7, 113)]
    standard = agree(SCHEMA, [said(records) for records in hospitals])

    rows = [row for records in hospitals for row in records]
    assert standard.patients == len(rows)
    for index, name in ((0, "age"), (3, "shift")):
        values = np.array([float(row.values_F[index]) for row in rows if row.present_F[index]])
        mean = values.sum() / len(values)
        sd = np.sqrt(((values - mean) ** 2).sum() / len(values))
        assert standard.mean[name] == pytest.approx(mean, rel=1e-13)
        # ages differ by a sixtieth of their size: their sum of squares keeps 11 digits of the variance
        assert standard.sd[name] == pytest.approx(sd, rel=1e-10)
    for index, name, n_words in ((1, "grade", 3), (2, "er", 2)):
        words = [int(row.values_F[index]) for row in rows if row.present_F[index]]
        assert standard.shares[name] == pytest.approx([words.count(word) / len(words) for word in range(n_words)])
    assert set(standard.mean) == set(standard.sd) == {"age", "shift"}


def test_the_order_of_hospitals_and_patients_changes_nothing() -> None:
    rng = np.random.default_rng(3)
    hospitals = [draw(rng, n) for n in (30, 20, 50)]
    one = agree(SCHEMA, [said(records) for records in hospitals])
    other = agree(SCHEMA, [said(records[::-1]) for records in hospitals[::-1]])
    assert one == other


def test_nobody_has_clinical_data() -> None:
    assert statistics_of(SCHEMA, [], min_patients=1) is None
    standard = agree(SCHEMA, [])
    assert (standard.patients, standard.mean, standard.sd, standard.shares) == (0, {}, {}, {})


def test_a_field_on_which_all_agree_has_no_spread() -> None:
    # 0.1 has no exact float: the sums of 1,000 leave a variance of about 1e-18 that is not there.
    statistics = said([record(0.1, None, None, None)] * 1000)
    assert agree(SCHEMA, [statistics]).sd == {"age": 0.0}
    zeros = said([record(0.0, None, None, None)] * 3)
    assert agree(SCHEMA, [zeros]).sd == {"age": 0.0}
    assert agree(SCHEMA, [zeros]).mean == {"age": 0.0}


def test_fewer_patients_than_the_policy_asks_for_are_not_reported() -> None:
    records = [record(50.0, 0, None, None)] * 9 + [record(None, 1, 1, None)]
    assert statistics_of(SCHEMA, records, min_patients=11) is None
    at_ten = said(records, min_patients=10)
    assert at_ten.patients == 10
    assert at_ten.fields.keys() == {"grade"}
    assert at_ten.fields["grade"].count == 10
    assert at_ten.fields["grade"].words is None  # one patient has the word "2"
    at_nine = said(records, min_patients=9)
    assert at_nine.fields.keys() == {"age", "grade"}
    assert (at_nine.fields["age"].count, at_nine.fields["age"].sum) == (9, 450.0)
    assert at_nine.fields["age"].sum_squares == 22500.0
    at_one = said(records)
    assert at_one.fields.keys() == {"age", "grade", "er"}  # nobody has a shift
    assert at_one.fields["grade"].words == [9, 1, 0]
    assert at_one.fields["er"].words == [0, 1]


def test_words_that_nobody_has_tell_nothing_of_few_patients() -> None:
    statistics = said([record(None, 2, None, None)] * 5, min_patients=5)
    assert statistics.fields["grade"].words == [0, 0, 5]


def test_shares_are_those_of_the_hospitals_that_report_words() -> None:
    open_hospital = said([record(None, 0, None, None)] * 3 + [record(None, 1, None, None)])
    careful = said([record(None, 2, None, None)] * 10 + [record(None, 0, None, None)], min_patients=5)
    assert careful.fields["grade"].words is None
    assert agree(SCHEMA, [open_hospital, careful]).shares == {"grade": (0.75, 0.25, 0.0)}
    assert agree(SCHEMA, [careful]).shares == {}


def test_statistics_travel_as_json() -> None:
    statistics = said(draw(np.random.default_rng(0), 20))
    assert ClinicalStatistics.model_validate_json(statistics.model_dump_json()) == statistics


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("n", [1, 2, 50])
def test_true_statistics_pass(seed: int, n: int) -> None:
    records = draw(np.random.default_rng(seed), n)
    if records:
        check_statistics(SCHEMA, said(records))


def test_statistics_at_the_edges_pass() -> None:
    for low, high in ((0.0, -5.0), (120.0, 5.0)):
        check_statistics(SCHEMA, said([record(low, None, None, high)] * 1000))
    check_statistics(SCHEMA, said([record(0.0, None, None, -5.0), record(120.0, None, None, 5.0)] * 500))


NUMBER = {"count": 10, "sum": 500.0, "sum_squares": 25500.0}
WORDS = {"count": 10, "words": [5, 3, 2]}


@pytest.mark.parametrize(
    ("name", "stated", "fault"),
    [
        ("size", NUMBER, "no such field"),
        ("age", NUMBER | {"count": 11}, "11 of 10 patients"),
        ("age", NUMBER | {"sum": 1201.0, "sum_squares": 2e5}, "a mean of 120.1 outside 0 to 120 years"),
        ("age", NUMBER | {"sum": -1.0}, "a mean of -0.1 outside"),
        ("age", NUMBER | {"sum": 1.7e308, "sum_squares": 1.7e308}, "outside"),
        ("age", NUMBER | {"sum_squares": 24999.0}, "a spread"),
        ("age", NUMBER | {"sum_squares": -1.0}, "a spread"),
        (
            "age",
            NUMBER | {"sum_squares": 60001.0},
            "a spread",
        ),  # five of 0 and five of 100 are more than fits below 120
        ("shift", {"count": 10, "sum": 0.0, "sum_squares": 250.1}, "a spread"),
        ("age", {"count": 10}, "a number has a sum"),
        ("age", {"count": 10, "sum": 500.0}, "a number has a sum"),
        ("age", NUMBER | {"words": [10]}, "no words"),
        ("grade", WORDS | {"words": [5, 5]}, "2 counts for 3 words"),
        ("grade", WORDS | {"words": [5, 3, 1]}, "words of 9 patients where 10 have one"),
        ("grade", WORDS | {"sum": 10.0}, "words have no sum"),
        ("er", {"count": 10, "words": [5, 3, 2]}, "3 counts for 2 words"),
    ],
)
def test_what_no_patients_can_have_given_is_refused(name: str, stated: dict[str, object], fault: str) -> None:
    statistics = ClinicalStatistics.model_validate({"patients": 10, "fields": {name: stated}})
    with pytest.raises(RefusedError, match=fault) as caught:
        check_statistics(SCHEMA, statistics)
    assert f"'{name}'" in caught.value.message


@pytest.mark.parametrize(
    "stated",
    [
        {"count": 0, "words": [0, 0]},
        {"count": -1},
        {"count": 2**40},
        {"count": 1.5},
        {"count": 1, "sum": math.nan, "sum_squares": 1.0},
        {"count": 1, "sum": math.inf, "sum_squares": 1.0},
        {"count": 1, "words": [2, -1]},
        {"count": 1, "words": [0] * 101},
        {"count": 1, "rows": [1, 2]},
    ],
)
def test_what_is_no_statistics_is_not_even_read(stated: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        ClinicalStatistics.model_validate({"patients": 10, "fields": {"age": stated}})


def test_a_field_that_cannot_be_checked_in_words_is_fine_without_them() -> None:
    check_statistics(SCHEMA, ClinicalStatistics.model_validate({"patients": 10, "fields": {"grade": {"count": 10}}}))


def test_numbers_that_nobody_reported_or_in_which_all_agree_are_unread() -> None:
    standard = agree(SCHEMA, [said([record(60.0, 1.0, None, None), record(60.0, None, None, None)])])
    assert standard.unread(SCHEMA) == ("age", "shift")
    standard = agree(SCHEMA, [said([record(60.0, None, None, 1.0), record(61.0, None, None, -1.0)])])
    assert standard.unread(SCHEMA) == ()
