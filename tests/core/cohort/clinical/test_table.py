"""Tables as hospitals save them: real CSV and Excel files, and each broken one named with file, line and remedy."""

import sys
from datetime import date, datetime
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import openpyxl
import pytest

from fedpath.core.cohort.clinical.table import TextTable, read_clinical
from fedpath.core.errors import DataError


def text(folder: Path, content: str | bytes, name: str = "clinical.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def excel(folder: Path, rows: list[list[Any]], *, sheets: dict[str, list[list[Any]]] | None = None) -> Path:
    book = openpyxl.Workbook()
    assert book.active is not None
    for row in rows:
        book.active.append(row)
    for name, content in (sheets or {}).items():
        sheet = book.create_sheet(name)
        for row in content:
            sheet.append(row)
    path = folder / "clinical.xlsx"
    book.save(path)
    return path


def fault(path: Path, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read_clinical(path, **options)
    assert str(path) in caught.value.message
    assert caught.value.remedy
    return caught.value


def cells(table: TextTable) -> list[tuple[str, ...]]:
    return [row.cells for row in table.rows]


@pytest.mark.parametrize(
    "content",
    [
        "patient,age\np1,50\np2,60\n",
        "patient;age\np1;50\np2;60\n",
        "patient\tage\r\np1\t50\r\np2\t60",
        "\ufeffpatient,age\r\np1,50\r\np2,60\r\n",
        '"patient","age"\n"p1","50"\n"p2"," 60 "\n\n',
        " patient , age \n p1 , 50 \n,\np2,60,,\n",
        "patient,age,\np1,50,\np2,60,\n",
        "patient,age\rp1,50\rp2,60\r",
    ],
)
def test_csv(tmp_path: Path, content: str) -> None:
    table = read_clinical(text(tmp_path, content))
    assert table.header == ("patient", "age")
    assert cells(table) == [("p1", "50"), ("p2", "60")]


def test_separators_within_quotes_do_not_count(tmp_path: Path) -> None:
    table = read_clinical(text(tmp_path, '"patient, id, of us";"age"\n"a;b";"5,2"\n'))
    assert table.header == ("patient, id, of us", "age")
    assert cells(table) == [("a;b", "5,2")]


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    table = read_clinical(text(tmp_path, 'patient,remark\n\np1,"two\nlines"\np2,"say ""no"""\n'))
    assert [(row.line, row.cells[1]) for row in table.rows] == [(3, "two\nlines"), (5, 'say "no"')]


def test_excel_reads_as_it_was_typed(tmp_path: Path) -> None:
    rows: list[list[Any]] = [
        ["patient", "value"],
        [1001, 1.0],
        ["007", 5.25],
        ["p3", None],
        [None, None],
        ["p4", True],
        ["p5", date(2024, 3, 1)],
        ["p6", datetime(2024, 3, 1, 12, 30)],
        ["p7", " <10% "],
        ["p8", 1e-7],
        ["p9", "#N/A"],
    ]
    table = read_clinical(excel(tmp_path, rows))
    assert table.header == ("patient", "value")
    assert [(row.line, *row.cells) for row in table.rows] == [
        (2, "1001", "1"),
        (3, "007", "5.25"),
        (4, "p3", ""),
        (6, "p4", "true"),
        (7, "p5", "2024-03-01"),
        (8, "p6", "2024-03-01 12:30:00"),
        (9, "p7", "<10%"),
        (10, "p8", "1e-07"),
        (11, "p9", "#N/A"),
    ]


def test_numbers_of_excel_follow_the_decimal_sign_of_its_texts(tmp_path: Path) -> None:
    table = read_clinical(excel(tmp_path, [["patient", "size"], ["p1", 5.25], ["p2", "5,25"]]), decimal=",")
    assert [row[1] for row in cells(table)] == ["5,25", "5,25"]


def test_a_sheet_by_its_name_and_the_first_by_default(tmp_path: Path) -> None:
    path = excel(tmp_path, [["patient"], ["first"]], sheets={"2024": [["patient"], ["second"]]})
    assert cells(read_clinical(path)) == [("first",)]
    assert cells(read_clinical(path, sheet="2024")) == [("second",)]
    error = fault(path, sheet="2023")
    assert error.message.endswith("no sheet '2023'")
    assert error.remedy == "set clinical.sheet in site.toml to one of: Sheet, 2024"


def test_an_empty_first_sheet_points_to_the_others(tmp_path: Path) -> None:
    error = fault(excel(tmp_path, [], sheets={"data": [["patient"], ["p1"]]}))
    assert error.message.endswith("sheet 'Sheet' is empty")
    assert error.remedy == "set clinical.sheet in site.toml to one of: Sheet, data"


def test_a_sheet_that_is_broken_inside(tmp_path: Path) -> None:
    whole = excel(tmp_path, [["patient", "age"], ["p1", 50]])
    broken = tmp_path / "broken.xlsx"
    with ZipFile(whole) as source, ZipFile(broken, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, content[: len(content) // 2] if "sheet1" in name else content)
    assert "not readable as Excel" in fault(broken).message


def test_a_sheet_of_a_text_file(tmp_path: Path) -> None:
    assert "remove clinical.sheet" in fault(text(tmp_path, "patient\np1\n"), sheet="2024").remedy


def test_formulas_are_their_last_values(tmp_path: Path) -> None:
    # openpyxl does not compute: a formula that no spreadsheet has computed yet has no value.
    table = read_clinical(excel(tmp_path, [["patient", "age"], ["p1", "=2024-1970"]]))
    assert cells(table) == [("p1", "")]


@pytest.mark.parametrize(
    ("content", "message", "remedy"),
    [
        ("", "is empty", "one patient a row"),
        ("\n , \n", "is empty", "one patient a row"),
        ("patient,age\n", "no rows below the header", "one patient a row"),
        ("patient,age\np1,50\np2\n", "line 3: 1 cells below 2 headings", "as many cells as the header"),
        ("patient,age\np1,50,60\n", "line 2: 3 cells below 2 headings", "quote cells that hold the separator"),
        ("patient,age\np1,5,2\n", "line 2: 3 cells", "quote cells"),
        ('patient,age\np1,"50\np2,60\n', "line 2: not readable as CSV", "check the quotes"),
        ('patient,age\np1,"5"0\n', "line 2: not readable as CSV", "check the quotes"),
        ("patient,age\np1,größer\n".encode("latin-1"), "not UTF-8 text", "save it as 'CSV UTF-8'"),
        ("patient,age\np1,50\n".encode("utf-16"), "not UTF-8 text", "save it as 'CSV UTF-8'"),
    ],
)
def test_a_broken_csv(tmp_path: Path, content: str | bytes, message: str, remedy: str) -> None:
    error = fault(text(tmp_path, content))
    assert message in error.message
    assert remedy in error.remedy


def test_a_broken_excel_file(tmp_path: Path) -> None:
    assert "is empty" in fault(excel(tmp_path, [])).message
    assert "no rows below the header" in fault(excel(tmp_path, [["patient", "age"]])).message
    ragged = excel(tmp_path, [["patient", "age"], ["p1", 50, "why?"]])
    assert "line 2: 3 cells below 2 headings" in fault(ragged).message
    for content in (b"", b"patient,age\n", b"PK\x03\x04 and no more"):
        error = fault(text(tmp_path, content, "clinical.xlsx"))
        assert "not readable as Excel" in error.message
        assert "save it as .xlsx" in error.remedy
    whole = excel(tmp_path, [["patient", "age"], ["p1", 50]]).read_bytes()
    assert "not readable as Excel" in fault(text(tmp_path, whole[: len(whole) // 2], "half.xlsx")).message


def test_what_is_not_there_or_no_table(tmp_path: Path) -> None:
    for name in ("absent.csv", "absent.xlsx"):
        assert "no such clinical table" in fault(tmp_path / name).message
    for name in ("table.xls", "table.ods", "table.sav", "table"):
        error = fault(text(tmp_path, "patient\np1\n", name))
        assert "files are not read" in error.message
        assert error.remedy == "save the table as .xlsx or CSV"
    for name in ("folder.csv", "folder.xlsx"):
        (tmp_path / name).mkdir()
        fault(tmp_path / name)


def test_without_openpyxl_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = excel(tmp_path, [["patient"], ["p1"]])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    error = fault(path)
    assert "need openpyxl, which is not installed" in error.message
    assert error.remedy == "pip install 'fedpath[client]', or save the table as CSV"
