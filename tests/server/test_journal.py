"""The journal of the open round."""

from pathlib import Path

import pytest

from fedpath.core.errors import DataError
from fedpath.server.journal import Journal


def test_what_was_noted_is_read_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "rounds/0001.journal.jsonl")
    assert journal.started_from() is None
    journal.note("asked", sites=["A", "B"], base="a" * 64)
    journal.note("lost", site="B", part={"outcome": "lost"})
    again = Journal(tmp_path / "rounds/0001.journal.jsonl")
    assert again.lines == journal.lines
    assert [line["state"] for line in again.lines] == ["asked", "lost"]
    assert again.started_from() == "a" * 64


def test_a_line_that_a_kill_cut_off_did_not_happen(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal(path).note("asked", sites=["A"], base="a" * 64)
    with path.open("ab") as file:
        file.write(b'{"state": "answered", "site": "A", "par')
    journal = Journal(path)
    assert [line["state"] for line in journal.lines] == ["asked"]
    journal.note("answered", site="A", part={})
    assert [line["state"] for line in Journal(path).lines] == ["asked", "answered"]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    for site in "ABC":
        journal.note("answered", site=site, part={"patients": {"image": 8}})
    whole = path.read_bytes()
    second = whole.splitlines(keepends=True)[1]
    others = [b"\x00" * 9 + b"\n", b"[]\n", b"{}\n", b"8\n", b'{"state": "answered"}\n', second.replace(b"8", b"9")]
    for other in [*others, second.replace(b"answered", b"answerec"), second.replace(b'"sum": ', b'"sum": 1')]:
        path.write_bytes(whole.replace(second, other))
        with pytest.raises(DataError, match=r"journal, line 2: is damaged"):
            Journal(path)


def test_a_round_that_begins_anew_has_no_past(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.note("asked", sites=["A"], base="a" * 64)
    journal.forget()
    assert journal.lines == []
    assert Journal(tmp_path / "journal").lines == []
