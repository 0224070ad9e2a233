"""`fedpath cohort check`: what a hospital sees of its own data before anything leaves."""

import json
import re
from pathlib import Path

import pytest
from command import Run, fedpath
from hospitals import FEDERATION, SITE

FIELDS = """
[clinical.fields.age]
type = "number"
unit = "years"
minimum = 18
maximum = 110
outcome_derived = false

[clinical.fields.grade]
type = "category"
vocabulary = ["1", "2", "3"]
outcome_derived = false

[clinical.fields.er]
type = "binary"
positive = "positive"
negative = "negative"
outcome_derived = false
"""
MAPPING = """
[clinical]
table = "clinical.csv"
[clinical.columns]
age = "Age"
grade = { column = "Grade", codes = { G1 = "1", G2 = "2" } }
"""
MANIFEST = "patient_id,slide_id,label\n" + "".join(
    f"SECRET{i},s{i}{letter},{'yes' if i % 2 else 'no'}\n" for i in range(10) for letter in ("ab" if i == 3 else "a")
)
TABLE = "patient_id,Age,Grade\n" + "\n".join(
    ["SECRET0,50,G1", "SECRET1,612,g2", "SECRET2,<10%,[red]Gx", "SECRET3,,", "SECRET4,61,3", "OTHER,3,3"]
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A hospital that maps two of three fields; no features are needed."""
    write(tmp_path)
    return tmp_path


def write(folder: Path, fields: str = FIELDS, mapping: str = MAPPING, table: str = TABLE) -> None:
    (folder / "federation.toml").write_text(FEDERATION + fields)
    (folder / "site.toml").write_text(SITE.format(name="A") + mapping)
    (folder / "manifest.csv").write_text(MANIFEST)
    (folder / "clinical.csv").write_text(table)


def check(folder: Path, *options: str, columns: int = 200) -> Run:
    command = ("cohort", "check", "--config", folder / "federation.toml", "--site", folder / "site.toml", *options)
    return fedpath(*command, environment={"COLUMNS": str(columns)})


def test_counts_a_field_at_a_time(folder: Path) -> None:
    run = check(folder, columns=80)
    assert run.code == 0, run.err
    text = run.out.replace(str(folder), "")
    assert "A: 11 slides of 10 patients" in text
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "patients of the manifest: 5 with a row, 5 without" in rows
    assert "rows of patients who are not in the manifest: 1 (not read)" in rows
    assert "age number, years 2 1 – 1 1 40%" in rows
    assert "grade category 3 1 1 – – 60%" in rows
    assert "Not mapped, and so not read: er" in rows
    assert "age: not usable: '612' (line 3), '<10%' (line 4)" in rows
    assert "grade: not usable: '[red]Gx' (line 4)" in rows
    assert "SECRET" not in text
    tables = [line for line in run.out.splitlines() if str(folder) not in line]
    assert max(map(len, tables)) <= 80


def test_a_narrow_terminal_breaks_names_and_not_counts(folder: Path) -> None:
    long = "pathological_size_of_the_primary_tumour"
    write(folder, FIELDS.replace("fields.age", f"fields.{long}"), MAPPING.replace("age =", f"{long} ="))
    run = check(folder, columns=80)
    assert run.code == 0, run.err
    assert max(len(line) for line in run.out.splitlines() if str(folder) not in line) <= 80
    assert "…" not in run.out
    assert "40%" in run.out


def test_json_holds_the_same_and_names_no_patient(folder: Path) -> None:
    run = check(folder, "--json")
    assert run.code == 0, run.err
    assert "SECRET" not in run.out
    report = json.loads(run.out)
    assert report["site"] == "A"
    assert sum(count for split in report["slides"].values() for count in split.values()) == 11
    assert sum(count for split in report["patients"].values() for count in split.values()) == 10
    assert set(report["patients"]) == {"train", "validation", "test"}
    clinical = report["clinical"]
    assert {name: clinical[name] for name in ("patients", "with_row", "without_row", "empty_rows", "unknown_rows")} == {
        "patients": 10,
        "with_row": 5,
        "without_row": 5,
        "empty_rows": 2,
        "unknown_rows": 1,
    }
    assert clinical["not_mapped"] == ["er"]
    assert clinical["fields"]["age"] == {
        "column": "Age",
        "type": "number",
        "unit": "years",
        "present": 2,
        "missing": 1,
        "out_of_vocabulary": 0,
        "out_of_range": 1,
        "not_a_number": 1,
        "share_present": 0.4,
    }
    assert clinical["fields"]["grade"]["out_of_vocabulary"] == 1


def test_works_without_clinical_data_and_says_so(folder: Path) -> None:
    write(folder, mapping="")
    run = check(folder)
    assert run.code == 0, run.err
    assert "No clinical data: site.toml has no [clinical]: none of the federation's 3 clinical fields" in run.out
    report = json.loads(check(folder, "--json").out)
    assert report["clinical"] is None
    assert report["note"].startswith("site.toml has no [clinical]")

    write(folder, fields="")
    assert "federation.toml declares no clinical fields; [clinical] of site.toml is not read" in check(folder).out
    write(folder, fields="", mapping="")
    run = check(folder)
    assert "11 slides of 10 patients" in run.out
    assert "No clinical data: federation.toml declares no clinical fields." in run.out


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"table": TABLE.replace("SECRET", "P")}, 3, ["no patient in common with the manifest", "patient_column"]),
        ({"table": TABLE + "\nSECRET1,612,G1"}, 3, ["line 8: patient 'SECRET1': contradiction", "keep the row"]),
        ({"table": TABLE + "\nSECRET1,612,G2"}, 3, ["line 8: patient 'SECRET1': duplicate", "one row a patient"]),
        ({"mapping": MAPPING.replace('"Age"', '"Agee"')}, 3, ["no column 'Agee'", "did you mean 'Age'?"]),
        ({"mapping": MAPPING.replace("age =", "agee =")}, 3, ["'clinical.columns.agee'", "did you mean 'age'?"]),
        ({"mapping": MAPPING.replace("clinical.csv", "clinical.xls")}, 3, ["'.xls' files are not read", ".xlsx"]),
        ({"mapping": MAPPING.replace("G1 =", "G0 =")}, 0, []),
        ({"mapping": MAPPING.replace('{ column = "Grade"', '{ colum = "Grade"')}, 2, ["did you mean 'column'?"]),
        ({"fields": FIELDS.replace("unit =", "units =")}, 2, ["clinical.fields.age.units", "did you mean 'unit'?"]),
        (
            {"fields": FIELDS.replace("outcome_derived = false", "outcome_derived = true", 1)},
            2,
            ["clinical.fields.age.outcome_derived", "derived from the outcome", "take the field out"],
        ),
    ],
)
def test_a_mistake_ends_with_its_error(folder: Path, change: dict[str, str], code: int, words: list[str]) -> None:
    write(folder, **change)
    run = check(folder)
    if code == 0:
        assert run.code == 0, run.err
    else:
        run.assert_error(code, *words)
        assert run.out == ""


def test_the_documentation_shows_what_the_command_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "clinical.md").read_text()
    for block in re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL):
        (tmp_path / block.partition("\n")[0].removeprefix("# ")).write_text(block)
    tables = re.findall(r"```csv\n(.*?)```", page, flags=re.DOTALL)
    for name, content in zip(("clinical.csv", "manifest.csv"), tables, strict=True):
        (tmp_path / name).write_text(content)
    command, _, output = re.findall(r"```console\n\$ (.*?)```", page, flags=re.DOTALL)[0].partition("\n")
    monkeypatch.chdir(tmp_path)
    run = fedpath(*command.split()[1:], environment={"COLUMNS": "80"})
    printed = [line.rstrip() for line in run.out.replace(f"{tmp_path}/", "").rstrip().splitlines()]
    assert printed == output.splitlines()
