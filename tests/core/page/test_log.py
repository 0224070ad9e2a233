"""The log of a page, and its live data."""

import asyncio
import json
import threading
from pathlib import Path

from fedpath.core.events import Event, EventLog
from fedpath.core.page.log import LINES, LogTail
from fedpath.core.page.stream import Stream, as_json


def words(event: Event) -> str | None:
    return event.values["text"] if event.kind == "said" else None


def test_the_last_lines_are_kept_cut_to_a_length() -> None:
    log = LogTail(words)
    for number in range(LINES + 50):
        log(Event("said", float(number), {"text": f"{number} " + "x" * 5000}))
        log(Event("quiet", 0.0, {}))
    lines = log.after(0)
    assert len(lines) == LINES
    assert lines[-1]["text"].startswith(f"{LINES + 49} x")
    assert len(lines[-1]["text"]) == 1000
    assert log.after(lines[-2]["n"]) == lines[-1:]
    assert log.after(lines[-1]["n"]) == []


def test_it_begins_with_what_earlier_processes_wrote(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events = EventLog(path)
    for number in range(3000):
        events.emit("said", text=f"line {number:04d} " + "y" * 100)
    events.emit("said", other="of an older version")
    events.close()
    with path.open("a") as file:
        file.write('{"kind": "said", "at": 1, "te')  # killed
    log = LogTail(words)
    log.take_up(path)
    assert [line["text"][:9] for line in log.after(0)] == [f"line {number:04d}" for number in range(2700, 3000)]
    LogTail(words).take_up(tmp_path / "none")


def test_each_reader_is_sent_everything_and_then_what_changes() -> None:
    log, sections, over = LogTail(words), {"one": "1", "two": "2"}, threading.Event()

    async def look() -> dict[str, str]:
        return dict(sections)

    def parsed(text: str) -> list[tuple[str, object]]:
        blocks = [block.split("\n") for block in text.strip().split("\n\n") if block.startswith("event")]
        return [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in blocks]

    async def read() -> None:
        stream = Stream(look, log, over)
        log(Event("said", 1.0, {"text": "first\nline"}))
        reader = stream.read()
        assert [kind for kind, _ in parsed(await anext(reader))] == ["clock"]
        said = parsed(await anext(reader))
        assert said[:2] == [("one", 1), ("two", 2)]
        assert said[2][0] == "log"
        assert said[2][1]["anew"]
        sections["two"] = "3"
        log(Event("said", 2.0, {"text": "second"}))
        said = parsed(await anext(reader))
        assert said[0] == ("two", 3)
        assert [line["text"] for line in said[1][1]["lines"]] == ["second"]
        assert not said[1][1]["anew"]
        other = stream.read()
        await anext(other)
        assert parsed(await anext(other))[:2] == [("one", 1), ("two", 3)]
        await reader.aclose()
        await other.aclose()
        assert not stream.is_full
        over.set()
        assert [part async for part in stream.read()][1:] == []

    asyncio.run(read())


def test_what_is_no_number_is_null() -> None:
    text = as_json({"loss": float("nan"), "auc": float("inf"), "line": "a\nb\u2028c"})
    assert json.loads(text) == {"loss": None, "auc": None, "line": "a\nb\u2028c"}
    assert "\n" not in text
