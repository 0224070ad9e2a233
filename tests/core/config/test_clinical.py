"""[clinical] of both files: each mistake is told with the key as it stands in the file."""

from pathlib import Path

import pytest

from fedpath.core.config import load_federation, load_site
from fedpath.core.config.clinical import BinaryField, CategoryField, ClinicalSection, NumberField, plain, words_of
from fedpath.core.errors import ConfigError

FEDERATION = """
[federation]
name = "small"
sites = ["A"]
[server]
address = "localhost:8443"
[task]
labels = ["no", "yes"]
[features]
encoder = "table"
width = 4
"""
AGE = """
[clinical.fields.age]
type = "number"
unit = "years"
minimum = 0
maximum = 120
outcome_derived = false
"""
GRADE = """
[clinical.fields.grade]
type = "category"
vocabulary = ["1", "2"]
outcome_derived = false
"""
ER = """
[clinical.fields.er]
type = "binary"
positive = "1"
negative = "0"
outcome_derived = false
"""
SITE = """
[site]
name = "A"
[data]
manifest = "manifest.csv"
features = "features"
[clinical]
table = "clinical.csv"
[clinical.columns]
age = "Age"
"""


def federation_fault(folder: Path, clinical: str) -> ConfigError:
    path = folder / "federation.toml"
    path.write_text(FEDERATION + clinical, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_federation(path)
    assert "\n" not in caught.value.message + caught.value.remedy
    return caught.value


def site_fault(folder: Path, text: str) -> ConfigError:
    path = folder / "site.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_site(path)
    assert "\n" not in caught.value.message + caught.value.remedy
    return caught.value


@pytest.mark.parametrize(
    ("clinical", "message", "remedy"),
    [
        (
            AGE.replace("unit =", "units ="),
            "key 'clinical.fields.age.units' is unknown; 1 more",
            "did you mean 'unit'?",
        ),
        (AGE + 'units = "a"', "key 'clinical.fields.age.units' is unknown", "did you mean 'unit'?"),
        (
            GRADE + "colour = 1",
            "key 'clinical.fields.grade.colour' is unknown",
            "remove it; [clinical.fields.grade] knows: outcome_derived, type, vocabulary",
        ),
        (
            AGE.replace("outcome_derived = false", ""),
            "key 'clinical.fields.age.outcome_derived' is missing",
            "add 'outcome_derived' to [clinical.fields.age]",
        ),
        (
            AGE.replace('type = "number"', ""),
            "key 'clinical.fields.age.type' is missing",
            "add 'type' to [clinical.fields.age]: number, category, binary",
        ),
        (
            AGE.replace('"number"', '"numbr"'),
            "key 'clinical.fields.age.type' = 'numbr' is unknown",
            "did you mean 'number'?",
        ),
        (
            AGE.replace('"number"', "7"),
            "key 'clinical.fields.age.type' = '7' is unknown",
            "use one of: number, category, binary",
        ),
        (
            AGE.replace("outcome_derived = false", "outcome_derived = true"),
            "key 'clinical.fields.age.outcome_derived' = True: this field is derived from the outcome, and a model "
            "that reads it is told what it should predict",
            "take the field out of federation.toml; the hospitals may keep the column",
        ),
        (
            AGE.replace("minimum = 0", "minimum = 120"),
            "key 'clinical.fields.age': minimum 120 is not below maximum 120",
            "correct 'clinical.fields.age' in that file",
        ),
        (
            # Its mean and spread would be no numbers of a model any more.
            AGE.replace("maximum = 120", "maximum = 1e40"),
            "key 'clinical.fields.age.maximum' = 1e+40: Input should be less than or equal to 1000000000000000",
            "correct 'clinical.fields.age.maximum' in that file",
        ),
        (
            AGE.replace("minimum = 0", 'minimum = "0"'),
            "key 'clinical.fields.age.minimum' = '0': Input should be a valid number",
            "correct 'clinical.fields.age.minimum' in that file",
        ),
        (
            '[clinical.fields]\nage = "number"',
            "key 'clinical.fields.age' = 'number': should be a table",
            "write it as [clinical.fields.age], with its keys below",
        ),
        (
            "[clinical]\nage = 3",
            "key 'clinical.fields' is missing; 1 more",
            "add 'fields' to [clinical]",
        ),
        (AGE + "[clinical]\nfield = 3", "key 'clinical.field' is unknown", "did you mean 'fields'?"),
        ("clinical = 3", "key 'features.clinical' is unknown", "remove it; [features] knows: "),
        (AGE.replace("age", '"age at"'), "key 'clinical.fields.age at' = 'age at': String should match", ""),
        (GRADE.replace('["1", "2"]', '["a", "A "]'), "key 'clinical.fields.grade.vocabulary' = ", ""),
        (GRADE.replace('["1", "2"]', '["1", "1.0"]'), "a word is listed twice", ""),
        (GRADE.replace('["1", "2"]', '["1"]'), "key 'clinical.fields.grade.vocabulary' = ['1']", ""),
        (GRADE.replace('"2"', "2"), "key 'clinical.fields.grade.vocabulary.1' = 2: Input should be a valid string", ""),
        (ER.replace('"1"', '"0.0"'), "key 'clinical.fields.er': positive and negative are the same code", ""),
        (ER.replace('"1"', '" "'), "key 'clinical.fields.er.positive' = ' '", ""),
    ],
)
def test_a_fault_of_the_schema(tmp_path: Path, clinical: str, message: str, remedy: str) -> None:
    error = federation_fault(tmp_path, clinical)
    assert f"federation.toml: {message}" in error.message or message in error.message.partition(": ")[2]
    assert error.remedy.startswith(remedy)


def test_a_fault_behind_other_tables_is_told_with_its_own_type(tmp_path: Path) -> None:
    error = federation_fault(tmp_path, AGE + GRADE + ER.replace('positive = "1"', ""))
    assert "key 'clinical.fields.er.positive' is missing" in error.message


@pytest.mark.parametrize(
    ("old", "new", "message", "remedy"),
    [
        (
            SITE[SITE.index("[clinical]") :],
            "[clinicl]",
            "key 'clinicl' is unknown",
            "did you mean 'clinical'?",
        ),
        ('table = "clinical.csv"', "", "key 'clinical.table' is missing", "add 'table' to [clinical]"),
        ('[clinical.columns]\nage = "Age"', "", "key 'clinical.columns' is missing", "add 'columns' to [clinical]"),
        ('age = "Age"', "", "key 'clinical.columns': Dictionary should have at least 1 item", ""),
        ('"clinical.csv"', '"clinical.csv"\nsheets = "x"', "key 'clinical.sheets' is unknown", "did you mean 'sheet'?"),
        ('"clinical.csv"', '"clinical.csv"\ndecimal = ";"', "key 'clinical.decimal' = ';'", ""),
        ('"clinical.csv"', '"clinical.csv"\nmax_unusable = 50', "key 'clinical.max_unusable' = 50", ""),
        ('"clinical.csv"', '"clinical.csv"\nmissing = "NA"', "key 'clinical.missing' = 'NA'", ""),
        ('"Age"', "3", "key 'clinical.columns.age' = 3: should be a table", ""),
        ('"Age"', '""', "key 'clinical.columns.age.column' = ''", ""),
        (
            '"Age"',
            '{ colum = "Age" }',
            "key 'clinical.columns.age.colum' is unknown; 1 more",
            "did you mean 'column'?",
        ),
        (
            '"Age"',
            '{ column = "Age", faktor = 2 }',
            "key 'clinical.columns.age.faktor' is unknown",
            "did you mean 'factor'?",
        ),
        ('"Age"', '{ column = "Age", factor = 0 }', "key 'clinical.columns.age.factor' = 0", ""),
        ('"Age"', '{ column = "Age", codes = { a = 1 } }', "key 'clinical.columns.age.codes.a' = 1", ""),
        (
            '"Age"',
            '{ column = "Age", codes = { 1 = "x", "1.0" = "y" } }',
            "key 'clinical.columns.age.codes': a word of the hospital is listed twice",
            "",
        ),
    ],
)
def test_a_fault_of_the_mapping(tmp_path: Path, old: str, new: str, message: str, remedy: str) -> None:
    assert old in SITE
    error = site_fault(tmp_path, SITE.replace(old, new))
    assert error.message.startswith(f"{tmp_path}/site.toml: {message}")
    assert error.remedy.startswith(remedy)


def test_what_is_left_out_of_the_mapping_has_a_default(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(SITE)
    clinical = load_site(tmp_path / "site.toml").clinical
    assert clinical is not None
    assert clinical.table == tmp_path / "clinical.csv"
    assert (clinical.patient_column, clinical.sheet, clinical.decimal) == ("patient_id", None, ".")
    assert clinical.max_unusable == 0.5
    assert {"", "NA", "unknown"} <= set(clinical.missing)
    assert ClinicalSection.model_validate(clinical.model_dump()) == clinical


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Positive", " positive ", True),
        ("1", "1.0", True),
        ("1", "1,0", True),
        ("1", "1,000", False),
        ("-1", "-1.0", True),
        ("not  done", "Not done", True),
        ("1", "1.5", False),
        ("10", "1", False),
        ("T1.0", "T1", False),
        ("straße", "STRASSE", True),
    ],
)
def test_which_words_are_the_same(one: str, other: str, same: bool) -> None:
    assert (plain(one) == plain(other)) is same


def test_words_stand_in_the_order_of_their_indices() -> None:
    assert words_of(CategoryField(type="category", vocabulary=["b", "a"], outcome_derived=False)) == ("b", "a")
    assert words_of(BinaryField(type="binary", positive="y", negative="n", outcome_derived=False)) == ("n", "y")
    assert words_of(NumberField(type="number", unit="cm", minimum=0, maximum=1, outcome_derived=False)) == ()
