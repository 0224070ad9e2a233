"""Events in a file, and a reader that follows it."""

import json
from pathlib import Path

import pytest

from fedpath.core.events import Event, EventLog, EventReader


def append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


def test_file_and_listener_get_the_same(tmp_path: Path) -> None:
    heard: list[Event] = []
    log = EventLog(tmp_path / "deep" / "events.jsonl", heard.append)
    log.emit("joined", site="A", reason="ünï\nline", auc=None)
    log.emit("step", done=1)
    # Every line is there at once: a killed process loses none.
    read = EventReader(tmp_path / "deep" / "events.jsonl").new()
    log.close()
    assert read == heard
    assert [event.kind for event in read] == ["joined", "step"]
    assert read[0].values == {"site": "A", "reason": "ünï\nline", "auc": None}
    assert heard[0].at <= heard[1].at


def test_without_a_file_only_the_listener_hears(tmp_path: Path) -> None:
    heard: list[Event] = []
    log = EventLog(None, heard.append)
    log.emit("x")
    log.close()
    assert [event.kind for event in heard] == ["x"]
    assert list(tmp_path.iterdir()) == []


def test_a_reader_follows_a_file_that_grows_by_pieces(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    reader = EventReader(path)
    assert reader.new() == []  # not there yet
    lines = [json.dumps({"kind": "step", "at": 1.0, "done": n, "who": "ü"}) + "\n" for n in range(3)]
    whole = "".join(lines).encode()
    seen: list[int] = []
    # Piece by piece of 7 bytes: every line is cut somewhere, and each arrives once, in order.
    for start in range(0, len(whole), 7):
        append(path, whole[start : start + 7])
        seen += [event.values["done"] for event in reader.new()]
        complete = whole[: start + 7].count(b"\n")
        assert seen == list(range(complete))
    assert seen == [0, 1, 2]
    assert reader.new() == []


def test_several_lines_at_once_and_two_readers(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    early = EventReader(path)
    log.emit("a")
    assert [event.kind for event in early.new()] == ["a"]
    log.emit("b")
    log.emit("c")
    assert [event.kind for event in early.new()] == ["b", "c"]
    assert [event.kind for event in EventReader(path).new()] == ["a", "b", "c"]


def test_a_line_cut_off_by_a_crash_does_not_spoil_the_next_runs(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path).emit("first")
    append(path, b'{"kind": "step", "at": 17')  # the process died here
    reader = EventReader(path)
    assert [event.kind for event in reader.new()] == ["first"]
    EventLog(path).emit("second")
    assert [event.kind for event in reader.new()] == ["second"]
    assert [event.kind for event in EventReader(path).new()] == ["first", "second"]


def test_a_full_disk_keeps_nobody_from_hearing_what_happens() -> None:
    heard: list[Event] = []
    log = EventLog(Path("/dev/full"), heard.append)
    with pytest.raises(OSError, match="No space left"):
        log.emit("audit_failed", error="the disk is full")
    assert [event.kind for event in heard] == ["audit_failed"]
    with pytest.raises(OSError, match="No space left"):
        log.close()
