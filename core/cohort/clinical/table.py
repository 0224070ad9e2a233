"""A clinical table as a hospital keeps it, CSV or Excel, becomes rows of text; what the text means is not decided here.

Nothing is guessed: rows that do not fit the header, broken quotes and unknown kinds of file are errors.
"""

import csv
import io
import re
import warnings
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, time
from pathlib import Path
from typing import Any

from fedpath.core.errors import DataError

_TEXT_SUFFIXES = (".csv", ".tsv", ".txt")
_EXCEL_SUFFIXES = (".xlsx", ".xlsm")


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row with anything in it."""

    line: int
    """As a spreadsheet or an editor counts, from 1."""
    cells: tuple[str, ...]
    """One a heading; without spaces around."""


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table's headings and rows."""

    path: Path
    header: tuple[str, ...]
    rows: tuple[TableRow, ...]


def read_clinical(path: Path, *, sheet: str | None = None, decimal: str = ".") -> TextTable:
    """Read a table.

    Args:
        path: CSV (UTF-8; comma, semicolon or tab) or .xlsx.
        sheet: of an Excel file; the first when None.
        decimal: the sign with which cells that Excel holds as numbers are written, so that they read like the others.

    Raises:
        DataError: naming the file, the line and the remedy: no such file, another kind of file, no header, no rows, a
            row with more or fewer cells than the header, broken quotes, no such sheet, openpyxl not installed.
    """
    suffix = path.suffix.lower()
    if suffix in _EXCEL_SUFFIXES:
        lines = _excel_rows(path, sheet, decimal)
    elif suffix in _TEXT_SUFFIXES:
        if sheet is not None:
            raise DataError(f"{path}: has no sheet '{sheet}': it is text", remedy="remove clinical.sheet in site.toml")
        lines = _text_rows(path)
    else:
        raise DataError(f"{path}: '{path.suffix}' files are not read", remedy="save the table as .xlsx or CSV")
    filled = [row for row in lines if any(row.cells)]
    if not filled:
        raise DataError(f"{path}: is empty", remedy="give a header and one patient a row")
    header, *rows = filled
    headings = _without_empty_end(header.cells)
    if not rows:
        raise DataError(f"{path}: no rows below the header", remedy="give one patient a row")
    return TextTable(path, headings, tuple(_fitted(path, row, len(headings), suffix) for row in rows))


def _fitted(path: Path, row: TableRow, width: int, suffix: str) -> TableRow:
    """Return a row with as many cells as there are headings; Excel leaves out empty cells at the end."""
    cells = _without_empty_end(row.cells) if len(row.cells) > width else row.cells
    if suffix in _EXCEL_SUFFIXES and len(cells) < width:
        cells += ("",) * (width - len(cells))
    if len(cells) != width:
        raise DataError(
            f"{path}, line {row.line}: {len(cells)} cells below {width} headings",
            remedy="give every row as many cells as the header has; quote cells that hold the separator",
        )
    return TableRow(row.line, cells)


def _without_empty_end(cells: tuple[str, ...]) -> tuple[str, ...]:
    return cells[: max((index for index, cell in enumerate(cells, 1) if cell), default=0)]


# --- text -------------------------------------------------------------------------------------------------------------


def _text_rows(path: Path) -> list[TableRow]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise _missing(path) from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder", remedy="name the table itself") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text", remedy="save it as 'CSV UTF-8', or as .xlsx") from None
    header = re.sub(r'"[^"]*"', "", text.lstrip().partition("\n")[0])
    # Spreadsheets of many countries write semicolons where others write commas.
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = []
    line = 1
    try:
        for cells in reader:
            rows.append(TableRow(line, tuple(cell.strip() for cell in cells)))
            line = reader.line_num + 1  # a quoted cell may span lines
    except csv.Error as error:
        raise DataError(
            f"{path}, line {line}: not readable as CSV: {error}", remedy="check the quotes from that line on"
        ) from None
    return rows


def _missing(path: Path) -> DataError:
    return DataError(f"{path}: no such clinical table", remedy="check clinical.table in site.toml")


# --- Excel ------------------------------------------------------------------------------------------------------------


def _excel_rows(path: Path, sheet: str | None, decimal: str) -> list[TableRow]:
    """Return the rows of a sheet: the values that Excel saw last, not formulas."""
    try:
        import openpyxl  # only hospitals with Excel tables need it
    except ModuleNotFoundError:
        raise DataError(
            f"{path}: Excel files need openpyxl, which is not installed",
            remedy="pip install 'fedpath[client]', or save the table as CSV",
        ) from None
    if not path.exists():
        raise _missing(path)
    with warnings.catch_warnings():
        # About decorations (validation lists, conditional formats) that are dropped, as everything but the values is.
        warnings.simplefilter("ignore", UserWarning)
        try:
            with closing(openpyxl.load_workbook(path, read_only=True, data_only=True)) as book:
                return _sheet_rows(path, book, sheet, decimal)
        except DataError:
            raise
        except Exception as error:  # the parser of a broken file fails in whatever way it happens to
            raise DataError(
                f"{path}: not readable as Excel: {type(error).__name__}: {error}",
                remedy="open it in Excel and save it as .xlsx without a password, or as CSV",
            ) from error


def _sheet_rows(path: Path, book: Any, sheet: str | None, decimal: str) -> list[TableRow]:
    names = [one.title for one in book.worksheets]
    remedy = f"set clinical.sheet in site.toml to one of: {', '.join(names)}"
    if not names or (sheet is not None and sheet not in names):
        raise DataError(f"{path}: no sheet" + (f" '{sheet}'" if sheet is not None else ""), remedy=remedy)
    chosen = book[sheet or names[0]]
    # Some programs write a wrong size into the file, and rows beyond it would be left out.
    chosen.reset_dimensions()
    rows = [
        TableRow(line, tuple(_text(value, decimal) for value in values))
        for line, values in enumerate(chosen.iter_rows(values_only=True), 1)
    ]
    if len(names) > 1 and not any(any(row.cells) for row in rows):
        raise DataError(f"{path}: sheet '{chosen.title}' is empty", remedy=remedy)
    return rows


def _text(value: Any, decimal: str) -> str:
    """Return a cell as a person would type it: whole numbers without ".0", dates as 2024-03-01."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case float():
            return str(int(value)) if value.is_integer() else repr(value).replace(".", decimal)
        case datetime() if value.time() == time():
            return value.date().isoformat()
        case _:
            return str(value).strip()
