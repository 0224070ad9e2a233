"""A hospital's table joined with its manifest: records, counts, and every error with what to do about it."""

from pathlib import Path
from typing import Any

import openpyxl
import pytest
import torch

from fedpath.core.cohort.clinical.join import FieldCounts, SiteClinical, _written_otherwise, load_clinical
from fedpath.core.cohort.examples import load_site_cohort
from fedpath.core.config.clinical import ClinicalSchema
from fedpath.core.config.site import SiteConfig
from fedpath.core.errors import DataError

SCHEMA = ClinicalSchema.model_validate(
    {
        "fields": {
            "age": {"type": "number", "unit": "years", "minimum": 18, "maximum": 110, "outcome_derived": False},
            "height": {"type": "number", "unit": "cm", "minimum": 100, "maximum": 250, "outcome_derived": False},
            "grade": {"type": "category", "vocabulary": ["1", "2", "3"], "outcome_derived": False},
            "er": {"type": "binary", "positive": "positive", "negative": "negative", "outcome_derived": False},
        }
    }
)
COLUMNS: dict[str, Any] = {"er": {"column": "ER", "codes": {"pos": "positive", "neg": "negative"}}, "age": "Age"}
TABLE = """\
patient_id,Age,ER,Height
p1,50,pos,172
p2,,neg,
p3,<10%,Pos,
p4,612,maybe,
p5,,,
px,33,pos,
p7,18.5,unknown,
py,34,pos,
"""


def hospital(folder: Path, table: str, columns: dict[str, Any] | None = None, **clinical: Any) -> SiteConfig:
    """Seven patients p1 to p7, the odd ones with tumour, p1 with two slides; and their table."""
    rows = ["p1,s1b,normal", *(f"p{i},s{i},{'tumour' if i % 2 else 'normal'}" for i in range(1, 8))]
    (folder / "manifest.csv").write_text("patient_id,slide_id,label\n" + "\n".join(rows))
    (folder / "clinical.csv").write_text(table)
    settings = {"table": folder / "clinical.csv", "columns": COLUMNS if columns is None else columns} | clinical
    return SiteConfig.model_validate(
        {
            "site": {"name": "A"},
            "data": {"manifest": folder / "manifest.csv", "features": folder / "features"},
            "clinical": settings,
        }
    )


def load(site: SiteConfig) -> SiteClinical:
    return load_clinical(site, SCHEMA, load_site_cohort(site, ["normal", "tumour"]))


def fault(site: SiteConfig) -> DataError:
    with pytest.raises(DataError) as caught:
        load(site)
    assert "\n" not in caught.value.message + caught.value.remedy
    return caught.value


def test_records_and_states(tmp_path: Path) -> None:
    clinical = load(hospital(tmp_path, TABLE))
    assert (clinical.patients, clinical.with_row, clinical.empty_rows, clinical.unknown_rows) == (7, 6, 2, 2)
    assert list(clinical.fields) == ["age", "er"]  # the schema's order, not the mapping's
    assert clinical.fields["age"] == FieldCounts(present=2, missing=2, out_of_range=1, not_a_number=1)
    assert clinical.fields["er"] == FieldCounts(present=3, missing=2, out_of_vocabulary=1)
    assert list(clinical.records) == ["p1", "p2", "p3", "p7"]
    for record in clinical.records.values():
        assert record.values_F.dtype == torch.float64
        assert record.present_F.dtype == torch.bool
    # Only mapped columns are read: the height of p1 stands in the table.
    assert clinical.records["p1"].values_F.tolist() == [50.0, 0.0, 0.0, 1.0]
    assert clinical.records["p1"].present_F.tolist() == [True, False, False, True]
    assert clinical.records["p2"].present_F.tolist() == [False, False, False, True]
    assert clinical.records["p2"].values_F.tolist() == [0.0, 0.0, 0.0, 0.0]
    assert clinical.records["p7"].values_F.tolist() == [18.5, 0.0, 0.0, 0.0]
    assert [(cell.line, cell.text) for cell in clinical.unusable["age"]] == [(4, "<10%"), (5, "612")]
    assert [(cell.line, cell.text) for cell in clinical.unusable["er"]] == [(5, "maybe")]


def test_without_a_table_nobody_has_a_record(tmp_path: Path) -> None:
    site = hospital(tmp_path, "")
    clinical = load(site.model_copy(update={"clinical": None}))
    assert clinical == SiteClinical(patients=7)


def test_the_order_of_the_rows_changes_nothing(tmp_path: Path) -> None:
    header, *rows = TABLE.splitlines()
    one = load(hospital(tmp_path, TABLE))
    other = load(hospital(tmp_path, "\n".join([header, *reversed(rows)])))
    assert list(one.records) == list(other.records)
    assert one.fields == other.fields


def test_excel_and_csv_say_the_same(tmp_path: Path) -> None:
    site = hospital(tmp_path, TABLE)
    book = openpyxl.Workbook()
    assert book.active is not None
    for line in TABLE.splitlines():
        book.active.append([float(cell) if cell.replace(".", "").isdecimal() else cell for cell in line.split(",")])
    book.save(tmp_path / "clinical.xlsx")
    assert site.clinical is not None
    as_excel = site.clinical.model_copy(update={"table": tmp_path / "clinical.xlsx"})
    one, other = load(site), load(site.model_copy(update={"clinical": as_excel}))
    assert one.fields == other.fields
    for patient, record in one.records.items():
        assert torch.equal(record.values_F, other.records[patient].values_F)


def test_headings_are_found_without_regard_to_case(tmp_path: Path) -> None:
    clinical = load(hospital(tmp_path, "Patient_ID,AGE \np1,50\n", {"age": "age"}))
    assert list(clinical.records) == ["p1"]


@pytest.mark.parametrize(
    ("table", "columns", "message", "remedy"),
    [
        ("patient,Age\np1,50\n", {"age": "Age"}, "no column 'patient_id'", "did you mean 'patient'?"),
        ("patient_id,Alter\np1,50\n", {"age": "Age"}, "no column 'Age' (clinical.columns.age in site.toml)", "has: "),
        ("patient_id,Agee\np1,50\n", {"age": "Age"}, "no column 'Age'", "did you mean 'Agee'?"),
        ("patient_id,Age,Age\np1,50,51\n", {"age": "Age"}, "2 columns are headed 'Age'", "rename all but one"),
        ("patient_id,Age\np1,50\n,55\n", {"age": "Age"}, "line 3: 'patient_id' is empty", "remove the row"),
        ("patient_id,Age\np1,50\n", {"agee": "Age"}, "key 'clinical.columns.agee'", "did you mean 'age'?"),
        ("patient_id,Age\np1,50\n", {"ki67": "Age"}, "declares no such field", "age, height, grade, er"),
    ],
)
def test_a_table_that_does_not_fit_its_mapping(
    tmp_path: Path, table: str, columns: dict[str, str], message: str, remedy: str
) -> None:
    error = fault(hospital(tmp_path, table, columns))
    assert message in error.message
    assert remedy in error.remedy


def test_no_patient_in_common(tmp_path: Path) -> None:
    error = fault(hospital(tmp_path, "patient_id,Age\n0001,50\n0002,51\n", {"age": "Age"}))
    assert error.message.endswith(
        "no patient in common with the manifest: 2 patients here (such as '0001'), 7 there (such as 'p1')"
    )
    assert "patient_column" in error.remedy


# --- two rows of one patient ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", ["p1,50,pos,", "p1,50.0,Positive,", "p1,50,pos,180"])
def test_a_duplicate_names_patient_and_lines(tmp_path: Path, second: str) -> None:
    """Columns that are not mapped, and two ways to write one thing, make no difference."""
    error = fault(hospital(tmp_path, TABLE + second + "\n"))
    assert "line 10: patient 'p1': duplicate: already on line 2" in error.message
    assert error.remedy == "keep one row a patient"


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ("p1,51,pos,", "'Age' (age) is '51' here and '50' on line 2"),
        ("p1,50,neg,", "'ER' (er) is 'neg' here and 'pos' on line 2"),
        ("p1,50,,", "'ER' (er) is '' here and 'pos' on line 2"),
        ("p3,<20%,pos,", "'Age' (age) is '<20%' here and '<10%' on line 4"),
    ],
)
def test_a_contradiction_names_patient_lines_and_field(tmp_path: Path, second: str, said: str) -> None:
    error = fault(hospital(tmp_path, f"{TABLE}{second}\n"))
    assert f"patient '{second[:2]}': contradiction: {said}" in error.message
    assert error.remedy == "keep the row that is right"


def test_rows_of_other_patients_do_not_matter(tmp_path: Path) -> None:
    assert load(hospital(tmp_path, f"{TABLE}px,99,neg,\n")).unknown_rows == 3


def test_patients_who_lost_their_leading_zeros_are_counted() -> None:
    assert _written_otherwise(["007", "p 8", "009"], ["7", "P8", "10"]) == 2
    assert _written_otherwise(["007"], []) == 0


# --- columns that cannot be trusted -----------------------------------------------------------------------------------


def column(values: list[str], heading: str = "Height") -> str:
    return f"patient_id,{heading}\n" + "".join(f'p{i},"{value}"\n' for i, value in enumerate(values, 1))


def test_a_mix_up_of_units(tmp_path: Path) -> None:
    metres = column(["1.72", "1.65", "1.80", "1.55", "171"])
    error = fault(hospital(tmp_path, metres, {"height": "Height"}))
    assert (
        "column 'Height' (height): 4 of 5 filled cells cannot be used: 4 out of range, such as '1.55', '1.65', '1.72', "
        "'1.80'" in error.message
    )
    assert error.remedy == (
        "the federation expects 100 to 250 cm: if the column has another unit, set clinical.columns.height.factor in "
        "site.toml"
    )
    mended = load(hospital(tmp_path, metres, {"height": {"column": "Height", "factor": 100}}))
    assert mended.fields["height"] == FieldCounts(present=4, out_of_range=1)
    assert mended.records["p1"].values_F[1] == 172.0


def test_another_vocabulary(tmp_path: Path) -> None:
    words = column(["G1", "G2", "G3", "Gx", "2", ""])
    error = fault(hospital(tmp_path, words, {"grade": "Height"}))
    assert "4 of 5 filled cells cannot be used: 4 out of vocabulary, such as 'G1', 'G2', 'G3', 'Gx'" in error.message
    assert error.remedy == "say in clinical.columns.grade.codes of site.toml which of them means which of: 1, 2, 3"
    codes = {"G1": "1", "G2": "2", "G3": "3"}
    mended = load(hospital(tmp_path, words, {"grade": {"column": "Height", "codes": codes}}))
    assert mended.fields["grade"] == FieldCounts(present=4, missing=1, out_of_vocabulary=1)


def test_another_decimal_sign(tmp_path: Path) -> None:
    table = column(["172,5", "165,0", "180"])
    error = fault(hospital(tmp_path, table, {"height": "Height"}))
    assert "2 of 3 filled cells cannot be used: 2 not a number, such as '165,0', '172,5'" in error.message
    assert "set clinical.decimal = ','" in error.remedy
    assert load(hospital(tmp_path, table, {"height": "Height"}, decimal=",")).fields["height"].present == 3


@pytest.mark.parametrize("cell", ["17%", "172 cm", "1960-03-01", "1.172,5", "1,172.5", "tall"])
def test_what_no_decimal_sign_would_mend_is_not_put_down_to_it(tmp_path: Path, cell: str) -> None:
    for decimal in ".,":
        error = fault(hospital(tmp_path, column([cell] * 3), {"height": "Height"}, decimal=decimal))
        assert error.remedy == (
            "write plain numbers in that column (no unit, percent sign, date, or separator of thousands), or map "
            "another"
        )


def test_text_where_numbers_should_be_is_counted_until_it_is_most_of_the_column(tmp_path: Path) -> None:
    half = load(hospital(tmp_path, column(["<10%", "160", "<10%", "170"]), {"height": "Height"}))
    assert half.fields["height"] == FieldCounts(present=2, not_a_number=2)
    fault(hospital(tmp_path, column(["<10%", "160", "<10%"]), {"height": "Height"}))
    strict = hospital(tmp_path, column(["<10%"] + ["160"] * 6), {"height": "Height"}, max_unusable=0.0)
    assert "1 of 7 filled cells" in fault(strict).message
    lax = hospital(tmp_path, column(["<10%"] * 7), {"height": "Height"}, max_unusable=1.0)
    assert load(lax).records == {}


def test_a_column_without_any_filled_cell_is_only_missing(tmp_path: Path) -> None:
    clinical = load(hospital(tmp_path, column([""] * 3 + ["NA"]), {"height": "Height"}))
    assert clinical.fields["height"] == FieldCounts(missing=4)
    assert (clinical.records, clinical.empty_rows) == ({}, 4)


# --- the label as a field ---------------------------------------------------------------------------------------------


def large(folder: Path, cells: list[str], mapped: Any, labels: list[str], field: str = "er") -> SiteConfig:
    """One patient a cell."""
    site = hospital(folder, column(cells, "X"), {field: mapped})
    rows = "".join(f"p{i},s{i},{label}\n" for i, label in enumerate(labels, 1))
    (folder / "manifest.csv").write_text("patient_id,slide_id,label\n" + rows)
    return site


LABELS = ["tumour", "normal"] * 6
ER = {"column": "X", "codes": {"1": "positive", "0": "negative"}}


def test_a_column_named_label_is_refused(tmp_path: Path) -> None:
    error = fault(hospital(tmp_path, "patient_id,Label\np1,pos\n", {"er": {"column": "label"}}))
    assert "column 'Label' (er) is named as the manifest's label" in error.message
    assert error.remedy == "take 'er' out of [clinical.columns] in site.toml"


def test_the_label_in_other_words_is_refused(tmp_path: Path) -> None:
    cells = ["1" if label == "tumour" else "0" for label in LABELS]
    error = fault(large(tmp_path, cells, ER, LABELS))
    assert "column 'X' (er) is the label in other words: of all 12 patients who have it" in error.message
    swapped = ["0" if cell == "1" else "1" for cell in cells]
    fault(large(tmp_path, swapped, ER, LABELS))
    # ... and with holes, as long as ten patients have it
    fault(large(tmp_path, ["", "NA", *cells[2:]], ER, LABELS))
    assert load(large(tmp_path, ["", "NA", "", *cells[3:]], ER, LABELS)).fields["er"].present == 9


def test_the_labels_own_words_are_recognised_before_they_are_out_of_vocabulary(tmp_path: Path) -> None:
    assert "is the label in other words" in fault(large(tmp_path, LABELS, {"column": "X"}, LABELS)).message


def test_what_only_goes_with_the_label_is_no_label(tmp_path: Path) -> None:
    cells = ["1" if label == "tumour" else "0" for label in LABELS]
    one_differs = ["0", *cells[1:]]
    assert load(large(tmp_path, one_differs, ER, LABELS)).fields["er"].present == 12
    constant = load(large(tmp_path, ["1"] * 12, ER, LABELS))
    assert constant.fields["er"].present == 12
    # a single patient of a class is no evidence
    lonely = ["tumour"] * 11 + ["normal"]
    assert load(large(tmp_path, ["1"] * 11 + ["0"], ER, lonely)).fields["er"].present == 12


def test_a_good_predictor_is_no_label(tmp_path: Path) -> None:
    """Each grade belongs to one class here, but not each class to one grade."""
    grades = ["1", "2"] * 3 + ["3", "2"] * 3
    assert load(large(tmp_path, grades, {"column": "X"}, LABELS, field="grade")).fields["grade"].present == 12
