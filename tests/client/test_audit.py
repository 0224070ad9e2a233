"""The log of what left: complete, in order, and telling when it was touched."""

import hashlib
import json
from pathlib import Path

import pytest

from fedpath.client.audit import AuditLog, Record, examine, verify
from fedpath.core.errors import DataError


def record(log: AuditLog, number: int) -> bytes:
    content = f"message {number}".encode() * number
    log.record(content, to="host:8443", run="r1", kind="update", round_=number, holds=f"{number} parametërs")
    return content


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log of five messages."""
    path = tmp_path / "state" / "audit.jsonl"
    log = AuditLog(path)
    for number in range(1, 6):
        record(log, number)
    return path


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def broken_line(path: Path) -> int:
    """The line that `verify` and a continuing log both name."""
    with pytest.raises(DataError, match=r"line \d+: the audit log was changed or damaged there") as caught:
        verify(path)
    assert "evidence" in caught.value.remedy
    before = path.read_bytes()
    with pytest.raises(DataError) as again:
        AuditLog(path)
    assert again.value.message == caught.value.message
    assert path.read_bytes() == before
    return int(caught.value.message.split("line ")[1].split(":")[0])


def test_every_message_is_there(path: Path) -> None:
    records = verify(path)
    assert [entry.number for entry in records] == [1, 2, 3, 4, 5]
    for number, entry in enumerate(records, start=1):
        content = f"message {number}".encode() * number
        assert (entry.size, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert (entry.to, entry.run, entry.kind, entry.round) == ("host:8443", "r1", "update", number)
        assert entry.holds == f"{number} parametërs"
        assert entry.at.endswith("+00:00")
    assert all(json.loads(line) for line in lines(path))


def test_a_line_is_there_before_the_message_can_leave(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    for number in range(1, 4):
        record(log, number)
        assert len(verify(tmp_path / "audit.jsonl")) == number


def test_the_chain_is_its_literal_definition(path: Path) -> None:
    last = "0" * 64
    for text in lines(path):
        line = json.loads(text)
        stated = line.pop("hash")
        assert line["previous"] == last
        assert hashlib.sha256(json.dumps(line, sort_keys=True).encode()).hexdigest() == stated
        last = stated


def test_no_log_is_an_empty_log(tmp_path: Path) -> None:
    assert verify(tmp_path / "audit.jsonl") == []
    AuditLog(tmp_path / "audit.jsonl")
    assert verify(tmp_path / "audit.jsonl") == []


def test_it_goes_on_after_reopening(path: Path) -> None:
    before = path.read_bytes()
    record(AuditLog(path), 6)
    record(AuditLog(path), 7)
    assert path.read_bytes().startswith(before)
    assert [entry.number for entry in verify(path)] == [1, 2, 3, 4, 5, 6, 7]


def test_two_agents_of_one_hospital_keep_one_chain(path: Path) -> None:
    # A hospital in two federations may keep one state folder.
    one, other = AuditLog(path), AuditLog(path)
    for number in range(6, 10):
        record(one if number % 2 else other, number)
    assert [entry.number for entry in verify(path)] == list(range(1, 10))


@pytest.mark.parametrize("key", ["at", "to", "run", "kind", "round", "size", "sha256", "holds", "previous", "hash"])
def test_a_changed_value_is_found(path: Path, key: str) -> None:
    texts = lines(path)
    line = json.loads(texts[2])
    line[key] = line[key] + 1 if isinstance(line[key], int) else ("f" if line[key][0] != "f" else "0") + line[key][1:]
    texts[2] = json.dumps(line).encode() + b"\n"
    path.write_bytes(b"".join(texts))
    assert broken_line(path) == 3


def test_a_changed_line_with_a_new_hash_breaks_the_next(path: Path) -> None:
    texts = lines(path)
    line = json.loads(texts[2])
    del line["hash"]
    line["holds"] = "nothing at all"
    line["hash"] = hashlib.sha256(json.dumps(line, sort_keys=True).encode()).hexdigest()
    texts[2] = json.dumps(line).encode() + b"\n"
    path.write_bytes(b"".join(texts))
    assert broken_line(path) == 4


@pytest.mark.parametrize(
    ("order", "line"),
    [
        ([0, 1, 3, 4], 3),  # one removed
        ([1, 2, 3, 4], 1),  # the first removed
        ([0, 2, 1, 3, 4], 2),  # two swapped
        ([0, 1, 1, 2, 3, 4], 3),  # one repeated
        ([4], 1),
    ],
)
def test_removed_swapped_and_repeated_lines_are_found(path: Path, order: list[int], line: int) -> None:
    texts = lines(path)
    path.write_bytes(b"".join(texts[index] for index in order))
    assert broken_line(path) == line


@pytest.mark.parametrize(
    "text", [b"\n", b"{}\n", b"[]\n", b"null\n", b'"x"\n', b"\xff\xfe\n", b'{"hash": 3}\n', b"x\n"]
)
def test_foreign_lines_are_found(path: Path, text: bytes) -> None:
    texts = lines(path)
    path.write_bytes(b"".join([*texts[:2], text, *texts[2:]]))
    assert broken_line(path) == 3
    path.write_bytes(b"".join([*texts, text]))
    assert broken_line(path) == 6


def test_a_line_cut_short_in_the_middle_is_found(path: Path) -> None:
    texts = lines(path)
    path.write_bytes(b"".join([*texts[:2], texts[2][:40] + b"\n", *texts[3:]]))
    assert broken_line(path) == 3
    path.write_bytes(b"".join([*texts[:2], texts[2][:40], *texts[3:]]))  # without its end, it runs into the next
    assert broken_line(path) == 3


def test_a_removed_end_shows_in_the_number_and_the_last_hash(path: Path) -> None:
    noted = verify(path)[-1].hash
    path.write_bytes(b"".join(lines(path)[:3]))
    assert verify(path)[-1].hash != noted


def test_a_crash_in_the_middle_of_a_line_is_not_taken_for_tampering(path: Path) -> None:
    texts = lines(path)
    for kept in (1, 40, len(texts[-1]) - 2):
        torn = texts[-1][:kept]
        path.write_bytes(b"".join(texts[:-1]) + torn)
        history = examine(path)
        assert [entry.number for entry in history.records] == [1, 2, 3, 4]
        assert history.unfinished == len(torn)
        assert path.read_bytes().endswith(torn)  # looking changes nothing

        record(AuditLog(path), 5)
        *_, note, last = verify(path)
        assert examine(path).unfinished == 0
        assert (note.number, note.kind, note.size) == (5, "interrupted", 0)
        assert note.sha256 == hashlib.sha256(torn).hexdigest()
        assert f"{len(torn)} bytes" in note.holds
        assert (last.number, last.kind) == (6, "update")


def test_zeros_that_a_power_cut_left_are_an_unfinished_line_too(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 200)
    assert examine(path).unfinished == 200
    record(AuditLog(path), 6)
    assert [entry.kind for entry in verify(path)][-2:] == ["interrupted", "update"]
    assert path.read_bytes().startswith(whole)


def test_a_last_line_without_its_end_of_line_is_whole(path: Path) -> None:
    # Killed just before the newline, or saved by an editor that drops it.
    path.write_bytes(path.read_bytes()[:-1])
    assert len(verify(path)) == 5
    record(AuditLog(path), 6)
    assert [entry.kind for entry in verify(path)] == ["update"] * 6


def test_a_last_line_that_is_whole_but_wrong_is_tampering(path: Path) -> None:
    texts = lines(path)
    line = json.loads(texts[-1]) | {"holds": "nothing"}
    path.write_bytes(b"".join(texts[:-1]) + json.dumps(line).encode())
    assert broken_line(path) == 5


def test_a_log_that_is_damaged_while_in_use_stops_the_site(path: Path) -> None:
    log = AuditLog(path)
    path.write_bytes(b"".join(lines(path)[1:]))
    with pytest.raises(DataError, match="line 1: the audit log was changed"):
        record(log, 6)


def test_records_are_plain_values(path: Path) -> None:
    assert isinstance(verify(path)[0], Record)
