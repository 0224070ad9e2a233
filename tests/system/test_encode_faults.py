"""What becomes of an encode run that is killed, on a disk that is full, or in a folder nobody may write to."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from federation import wait_until
from slide_files import small_slide

from fedpath.core.bags import read_bag

pytestmark = pytest.mark.system
SLIDES = 6


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    small_slide(folder / "slide-0.tif", 0.25)
    for number in range(1, SLIDES):
        shutil.copy(folder / "slide-0.tif", folder / f"slide-{number}.tif")
    return folder


def command(slides: Path, out: Path) -> list[str]:
    # Patches of 16 px: enough of them to be killed in between.
    options = ["--encoder", "seeded-conv", "--mpp", "0.25", "--patch", "16", "--batch", "16", "--device", "cpu"]
    return [sys.executable, "-m", "fedpath.cli", "slides", "encode", str(slides), "--out", str(out), *options]


def test_a_killed_run_goes_on_where_it_was(slides: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = subprocess.Popen(command(slides, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_until(lambda: len(list(out.glob("slide-*.h5"))) >= 2 or run.poll() is not None, "two feature files")
        assert run.poll() is None, "it ended before it could be killed"
    finally:
        run.send_signal(signal.SIGKILL)
        run.communicate()
    before = {path: path.stat().st_mtime_ns for path in out.glob("slide-*.h5")}
    assert 2 <= len(before) < SLIDES
    again = subprocess.run(command(slides, out), capture_output=True, text=True, timeout=120, check=True)
    assert "already there" in again.stdout
    assert len(list(out.glob("slide-*.h5"))) == SLIDES
    # What was finished was not done again, and every file is whole.
    assert {path: path.stat().st_mtime_ns for path in before} == before
    sizes = {len(read_bag(path)) for path in out.glob("slide-*.h5")}
    assert len(sizes) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize(
    ("disk", "said"),
    [("size=1500k", "No space left on device"), ("size=64m,ro", "Read-only file system")],
    ids=["full", "read-only"],
)
def test_a_disk_that_takes_no_more_is_named_and_nothing_is_lost(
    slides: Path, tmp_path: Path, disk: str, said: str
) -> None:
    out, kept = tmp_path / "out", tmp_path / "kept"
    out.mkdir()
    script = f'mount -t tmpfs -o {disk} none "$0" && {{ "$@"; code=$?; cp -r "$0" "{kept}"; exit $code; }}'
    ended = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, str(out), *command(slides, out)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    told = ended.stdout + ended.stderr
    assert ended.returncode not in (0, 1), told
    assert said in told
    assert str(out) in told.replace("\n", "")
    assert "Traceback" not in told
    for path in kept.glob("*.h5"):
        read_bag(path)
    assert not list(kept.glob("*.tmp"))
