"""Events of child processes over a real socket, from real processes."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from federation import wait_until

from fedpath.core.events import Event, EventLog
from fedpath.core.monitoring.children import VARIABLE, Mailbox, tell


@pytest.fixture
def heard() -> list[Event]:
    return []


@pytest.fixture
def mailbox(tmp_path: Path, heard: list[Event]) -> Iterator[Mailbox]:
    with Mailbox(tmp_path, "agent", EventLog(None, heard.append)) as made:
        yield made


def child(script: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", f"from fedpath.core.monitoring.children import tell\n{script}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_what_a_child_tells_is_an_event_of_its_daemon(mailbox: Mailbox, heard: list[Event]) -> None:
    with child("print(tell('trainer', rank=1, memory_bytes=2.5e9, kind_of='cpu'))") as process:
        assert process.stdout is not None
        assert process.stdout.read() == "True\n"
    wait_until(lambda: bool(heard), "the event is heard")
    (event,) = heard
    assert event.kind == "trainer"
    assert event.values == {
        "pid": process.pid,
        "dropped": 0,
        "rank": 1,
        "memory_bytes": 2.5e9,
        "kind_of": "cpu",
    }
    assert mailbox.counts == {"taken": 1, "refused": 0}


def test_only_its_own_user_may_tell(mailbox: Mailbox) -> None:
    mode = mailbox.path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_what_was_told_before_the_end_is_heard_and_nothing_is_left(tmp_path: Path, heard: list[Event]) -> None:
    with Mailbox(tmp_path, "agent", EventLog(None, heard.append)) as mailbox:
        assert os.environ[VARIABLE] == str(mailbox.path)
        assert all(tell("encoder", slides=number) for number in range(5))
    assert [event.values["slides"] for event in heard] == [0, 1, 2, 3, 4]
    assert VARIABLE not in os.environ
    assert list(tmp_path.iterdir()) == []


def test_a_killed_child_harms_nobody(mailbox: Mailbox, heard: list[Event]) -> None:
    with child("import itertools\nfor n in itertools.count(1): tell('encoder', slides=n)") as process:
        wait_until(lambda: len(heard) > 10, "the child tells")
        process.send_signal(signal.SIGKILL)
    assert tell("encoder", slides=0)
    wait_until(lambda: heard[-1].values["slides"] == 0, "another one is heard")
    assert mailbox.counts["refused"] == 0


def test_a_daemon_that_is_away_costs_a_child_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not tell("encoder", slides=1)  # nobody asked for it
    for path in (tmp_path / "gone.sock", tmp_path / "no-such-folder" / "gone.sock"):
        monkeypatch.setenv(VARIABLE, str(path))
        assert not tell("encoder", slides=1)
    heard: list[Event] = []
    monkeypatch.delenv(VARIABLE)
    with Mailbox(tmp_path, "gone", EventLog(None, heard.append)):
        assert tell("encoder", slides=3)
        assert tell("encoder", slides=4)
    assert [event.values["dropped"] for event in heard] == [2, 0]


def test_a_busy_daemon_does_not_hold_a_child_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deaf.sock"
    monkeypatch.setenv(VARIABLE, str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(path))
        started = time.monotonic()
        told = [tell("encoder", slides=number) for number in range(3000)]
        assert told[0]
        assert not told[-1]
        assert time.monotonic() - started < 60  # it would wait for ever


def test_a_daemon_that_was_killed_is_followed_by_another(tmp_path: Path, heard: list[Event]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as earlier:
        earlier.bind(str(tmp_path / "agent.sock"))
    assert (tmp_path / "agent.sock").exists()
    with Mailbox(tmp_path, "agent", EventLog(None, heard.append)):
        assert tell("encoder", slides=1)
    assert len(heard) == 1


def test_a_folder_may_have_a_long_name(tmp_path: Path, heard: list[Event]) -> None:
    folder = tmp_path / ("deep-" * 20) / ("deeper-" * 20)
    with Mailbox(folder, "agent", EventLog(None, heard.append)) as mailbox:
        assert len(str(mailbox.path)) > 200
        with child("tell('encoder', slides=7)"):
            pass
    assert [event.values["slides"] for event in heard] == [7]


def test_a_folder_that_takes_no_socket_does_not_keep_the_daemon_from_its_work(
    tmp_path: Path, heard: list[Event]
) -> None:
    (tmp_path / "agent.sock").mkdir()
    with Mailbox(tmp_path, "agent", EventLog(None, heard.append)) as mailbox:
        assert mailbox.path.parent != tmp_path
        assert stat.S_IMODE(mailbox.path.parent.stat().st_mode) == 0o700
        with child("tell('encoder', slides=7)"):
            pass
    assert [event.values["slides"] for event in heard] == [7]
    assert not mailbox.path.parent.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no JSON",
        b"[1, 2]",
        b"[" * 4000,
        json.dumps({"kind": "round_finished", "round": 3}).encode(),
        json.dumps({"kind": "trainer", "slide": "/data/Mueller.svs"}).encode(),
        json.dumps({"kind": "trainer", "Patient": 1}).encode(),
        json.dumps({"kind": "trainer", "at": 1}).encode(),
        json.dumps({"kind": "trainer", "more": {"a": 1}}).encode(),
        json.dumps({"kind": "trainer", "memory_bytes": float("nan")}).encode(),
        b'{"kind": "trainer", "memory_bytes": 1' + b"0" * 3000 + b"}",
        json.dumps({"kind": "trainer", **{f"value_{'abcdefghijklmnopqrstuvwxyz'[n]}": n for n in range(26)}}).encode(),
        json.dumps({"kind": "trainer"}).encode() + b" " * 5000,
    ],
)
def test_what_is_no_event_of_a_child_is_refused(mailbox: Mailbox, heard: list[Event], content: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        ours.sendto(content, str(mailbox.path))
    wait_until(lambda: mailbox.counts.total() == 1, "it is read")
    assert mailbox.counts == {"taken": 0, "refused": 1}
    assert heard == []
    assert tell("encoder", slides=1)
    wait_until(lambda: bool(heard), "the next one is heard")
