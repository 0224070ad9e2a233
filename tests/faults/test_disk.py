"""Disks: full, read-only, and with a model or a record on them that is not what was written."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_cases import DEADLINE_S, Whole, finish, killed, recovered_after, round_done
from fault_hooks import killed_coordinator
from fault_table import Case, Note
from federation import Federation, wait_until
from namespaces import needs_root
from small_disk import small_disk

pytestmark = pytest.mark.faults
short = pytest.mark.system
NO_SPACE = "No space left on device"
MAKE_ROOM = "remedy: make room on that disk and give the same command again"


@needs_root
@pytest.mark.parametrize("state", ["gathering", pytest.param("round 2", marks=short)])
def test_the_coordinators_disk_is_full(federation: Federation, whole: Whole, note: Note, state: str) -> None:
    with small_disk(federation.state, "24m") as disk:
        federation.state = disk.path
        federation.start_server()
        federation.start_sites()
        if state == "round 2":
            wait_until(round_done(federation, 1), "round 1 is done", DEADLINE_S)
        else:
            federation.wait_for_output("server", "waiting: ")
        disk.fill()
        assert federation.wait("server", DEADLINE_S) == 1, federation.output("server")
        told = federation.output("server")
        assert f"error: {disk.path}" in told, told
        assert NO_SPACE in told, told
        assert MAKE_ROOM in told, told
        assert "Traceback" not in told, told
        disk.make_room()
        since = time.monotonic()
        federation.start_server(name="again")
        seconds = recovered_after(federation, since)
        result = finish(federation, whole, ["again", *federation.sites])
    note(Case("the coordinator's disk is full, then there is room", state, seconds, result))


@needs_root
def test_a_hospitals_disk_is_full(federation: Federation, whole: Whole, note: Note) -> None:
    with small_disk(federation.site("B") / "disk", "8m") as disk:
        with (federation.site("B") / "site.toml").open("r+") as file:
            content = file.read()
            file.seek(0)
            file.write(f'state = "{disk.path}/state"\n{content}')
        federation.start_server()
        federation.start_sites()
        wait_until(round_done(federation, 1), "round 1 is done", DEADLINE_S)
        disk.fill()
        assert federation.wait("B", DEADLINE_S) == 1, federation.output("B")
        told = federation.output("B")
        assert f"error: {disk.path}/state/" in told, told
        assert NO_SPACE in told, told
        assert MAKE_ROOM in told, told
        assert "Traceback" not in told, told
        disk.make_room()
        since = time.monotonic()
        federation.start("B-again", federation.join_arguments("B"))
        seconds = recovered_after(federation, since)
        result = finish(federation, whole, ["server", "A", "B-again", "C"])
    note(Case("a hospital's disk is full, then there is room", "in round 2", seconds, result))


@needs_root
def test_the_coordinators_folder_is_read_only(federation: Federation, whole: Whole, note: Note) -> None:
    with small_disk(federation.state, "24m") as disk:
        federation.state = disk.path
        federation.start_script("server", killed_coordinator("asked"), federation.server_arguments())
        federation.start_sites()
        killed(federation, "server")
        disk.remount("ro")
        federation.start_server(name="read-only")
        assert federation.wait("read-only", DEADLINE_S) == 1
        told = federation.output("read-only")
        assert f"error: {disk.path}/events.jsonl: Read-only file system" in told, told
        assert "remedy: check that path, its rights" in told, told
        assert "Traceback" not in told, told
        disk.remount("rw")
        since = time.monotonic()
        federation.start_server(name="again")
        seconds = recovered_after(federation, since)
        result = finish(federation, whole, ["again", *federation.sites])
    note(Case("the coordinator's folder is read-only, then not", "asked", seconds, result))


def flip(path: Path) -> None:
    """Let one bit in the middle of a file be another."""
    content = bytearray(path.read_bytes())
    content[-len(content) // 3] ^= 16
    path.write_bytes(content)


def cut(path: Path) -> None:
    """Let a file end early."""
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    """Let nothing be in a file."""
    path.write_bytes(b"")


NEWEST, BEFORE = "models/0002.safetensors", "models/0001.safetensors"
MODEL_OF_2 = "the model of round 2 is damaged: going on from round 1"


@pytest.mark.parametrize(
    ("what", "damage", "said"),
    [
        pytest.param("a bit of the newest model", {NEWEST: flip}, MODEL_OF_2, marks=short),
        ("the newest model is cut off", {NEWEST: cut}, MODEL_OF_2),
        ("the newest model is empty", {NEWEST: empty}, MODEL_OF_2),
        ("the newest model is not there", {NEWEST: Path.unlink}, MODEL_OF_2),
        ("both models", {NEWEST: flip, BEFORE: cut}, "the model of round 2 is damaged: going on from round 0"),
        ("the newest manifest", {"rounds/0002.json": cut}, "the record of round 2 is damaged: going on from round 1"),
        (
            "the open round's journal",
            {"rounds/0003.journal.jsonl": flip},
            "the journal of round 3 is damaged: its updates are asked for again",
        ),
        ("an update that has arrived", {"updates/0003/A.safetensors": flip}, ""),
        ("Flower's database", {"../../flower.db": empty}, ""),
    ],
)
def test_a_file_is_damaged(
    federation: Federation, whole: Whole, note: Note, what: str, damage: dict[str, Callable[[Path], None]], said: str
) -> None:
    script = killed_coordinator("answered").replace('"0002"', '"0003"')
    federation.start_script("server", script, federation.server_arguments())
    federation.start_sites()
    killed(federation, "server")
    run = federation.run_folder()
    if any("updates" in name for name in damage):
        # Whose update came first is not known: it is that one's which is damaged.
        (arrived,) = (path.name for path in (run / "updates/0003").iterdir())
        damage = {f"updates/0003/{arrived}": flip}
    if any("flower" in name for name in damage):
        # The agents do not know a coordinator that does not know them.
        for site in federation.sites:
            federation.signal(site, signal.SIGKILL)
            federation.wait(site)
            federation.start_sites(site)
    for name, spoil in damage.items():
        spoil(run / name)
    federation.start_server(name="again")
    since = time.monotonic()
    wait_until(round_done(federation, 3), "round 3 is done", DEADLINE_S)
    seconds = time.monotonic() - since
    result = finish(federation, whole, ["again", *federation.sites])
    assert said in federation.output("again"), federation.output("again")
    note(Case(f"damaged: {what}", "answered, in round 3", seconds, result))


def test_a_damaged_summary_is_of_no_consequence(federation: Federation) -> None:
    """What is not finished has none; a leftover of a write that was cut off is not one."""
    federation.start_script("server", killed_coordinator("published"), federation.server_arguments())
    federation.start_sites()
    killed(federation, "server")
    (federation.run_folder() / ".summary.json.x.tmp").write_text("{")
    federation.start_server(name="again")
    assert federation.wait("again", DEADLINE_S) == 0
    assert json.loads((federation.run_folder() / "summary.json").read_text())["rounds"] == 3
    assert not list(federation.run_folder().rglob("*.tmp"))
