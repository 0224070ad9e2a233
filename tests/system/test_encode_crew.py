"""Slides encoded by several processes: the same features, whoever dies."""

import os
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from slide_files import small_slide

from fedpath.client.slides.crew import Crew, _Desk
from fedpath.client.slides.encode import encode_folder
from fedpath.client.slides.outcome import EncodeProgress, EncodeReport, Quarantined
from fedpath.client.slides.prepare import Job
from fedpath.client.slides.settings import EncodeSettings
from fedpath.core.bags import read_bag
from fedpath.core.errors import ConfigError
from fedpath.core.events import Event, EventLog
from fedpath.core.monitoring.children import Mailbox

pytestmark = pytest.mark.system
SETTINGS = EncodeSettings(0.5, 64, batch=8)
MANY_PATCHES = EncodeSettings(0.5, 16, batch=8)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    small_slide(folder / "slide-0.tif", 0.5)
    for number in range(1, 8):
        shutil.copy(folder / "slide-0.tif", folder / f"slide-{number}.tif")
    (folder / "bad.svs").write_text("no slide")
    return folder


def encode(
    slides: Path,
    out: Path,
    crew: Crew | None,
    progress: Callable[[EncodeProgress], None] | None = None,
    settings: EncodeSettings = SETTINGS,
) -> EncodeReport:
    return encode_folder(slides, out, settings, encoder="seeded-conv", crew=crew, progress=progress)


def workers_here() -> list[int]:
    """Ids of the encoding processes that this process started."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has ended meanwhile
            if "_Worker" in " ".join(child.cmdline()):
                found.append(child.pid)
    return found


def test_two_processes_make_what_one_makes(slides: Path, tmp_path: Path) -> None:
    told: list[EncodeProgress] = []
    alone = encode(slides, tmp_path / "alone", None)
    heard: list[Event] = []
    with Mailbox(tmp_path, "agent", EventLog(None, heard.append)):  # as that of an agent which they work for
        together = encode(slides, tmp_path / "together", Crew("local", 2, "cpu"), told.append)
    encoded = {event.values["pid"]: event.values["slides"] for event in heard if "slides" in event.values}
    assert sum(encoded.values()) == 8
    assert sum("bad_slides" in event.values for event in heard) == 1
    assert [result.slide_id for result in together.done] == [result.slide_id for result in alone.done]
    assert [bad.slide_id for bad in together.quarantined] == ["bad"]
    for result in alone.done:
        one, other = (read_bag(tmp_path / how / f"{result.slide_id}.h5") for how in ("alone", "together"))
        assert np.array_equal(one.features_ND, other.features_ND)
    assert told
    again = encode(slides, tmp_path / "together", Crew("local", 2, "cpu"))
    assert len(again.skipped) == 8


def test_a_process_that_is_killed_is_replaced_and_loses_nothing(slides: Path, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_once(_: EncodeProgress) -> None:
        workers = [] if killed else workers_here()
        if workers:
            killed.append(workers[0])
            os.kill(workers[0], signal.SIGKILL)

    report = encode(slides, tmp_path, Crew("local", 2, "cpu"), kill_once, MANY_PATCHES)
    assert killed
    assert len(report.done) + len(report.skipped) == 8
    assert [bad.slide_id for bad in report.quarantined] == ["bad"]


def test_a_cluster_that_is_not_there_is_an_error(slides: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no Ray cluster there"):
        encode(slides, tmp_path, Crew("127.0.0.1:1", 1, "cpu"))
    with pytest.raises(ConfigError, match="need a GPU each, Ray has 0"):
        encode(slides, tmp_path, Crew("local", 2, "cuda"))


def test_what_brings_its_process_down_is_found_and_nothing_else_suffers() -> None:
    jobs = [Job(Path(f"{name}.tif"), Path(), None) for name in "abcd"]
    desk = _Desk(jobs)
    assert [desk.next("one"), desk.next("one")] == jobs[:2]
    assert desk.lost("one") == 2
    # The two are suspects: they come last, each to a process that has nothing else.
    assert [desk.next("two"), desk.next("two")] == jobs[2:]
    assert desk.next("two") == "wait"
    for job in jobs[2:]:
        desk.finished("two", job, Quarantined(job.slide_id, "", "", ""))
    assert desk.next("two") == jobs[0]
    assert desk.next("two") == "wait"
    assert desk.next("three") == jobs[1]
    desk.finished("two", jobs[0], Quarantined("a", "", "", ""))
    assert desk.next("two") is None
    assert desk.lost("three") == 1
    outcomes = {job.slide_id: outcome.reason for job, outcome in desk.news()[1] if isinstance(outcome, Quarantined)}
    assert set(outcomes) == set("abcd")
    assert "died twice" in outcomes["b"]
