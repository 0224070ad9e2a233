"""The demo, small: two hospitals with a few slides, from drawing to the report."""

import json
import os
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from federation import wait_until

from fedpath.client.audit import verify
from fedpath.core.models import load_model

pytestmark = pytest.mark.system


def run_demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fedpath.cli", "demo", "--dir", str(folder), *arguments],
        env=os.environ | {"COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_small_demo_from_slides_to_report(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    done = run_demo(folder, "--sites", "2", "--slides", "8", "--rounds", "2", "--seed", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((folder / "summary.json").read_text())

    assert set(summary["models"]) == {"federated", "local-A", "local-B", "pooled"}
    for name, shown in (("federated", "Federated"), ("local-A", "A alone"), ("pooled", "Pooled data")):
        value = summary["models"][name]["test_auc"]["value"]
        assert f"{shown}" in done.stdout
        assert f"{value:.3f}" in done.stdout
    assert summary["federation"]["seed"] == 5
    assert [round_["answered"] for round_ in summary["rounds"]] == [["A", "B"], ["A", "B"]]
    assert summary["resources"]["peak_memory_mb"] > 100

    for site in ("A", "B"):
        records = verify(folder / "hospitals" / site / "state" / "audit.jsonl")
        assert summary["what_left"][site]["bytes"] == sum(record.size for record in records)
        assert len(list((folder / "hospitals" / site / "features").glob("*.h5"))) == 8
        assert summary["hospitals"][site]["mpp_level0"] == {"A": 0.25, "B": 0.5}[site]
    for what in ("best global model", "last global model"):
        load_model(folder / summary["files"][what])

    page = (folder / "report.html").read_text()
    references = _References()
    references.feed(page)
    assert references.outside == []
    # One heatmap a tumour slide, of at most two a hospital; each of these hospitals tests on one.
    assert page.count("data:image/png;base64,") == len(summary["heatmaps"]) == 2
    for place in ("report.html", "summary.json"):
        assert str(folder / place) in done.stdout

    # What is there is not overwritten.
    again = run_demo(folder)
    assert again.returncode == 2
    assert "exists and is not empty" in again.stderr


def test_ending_the_demo_ends_its_processes(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    command = [sys.executable, "-m", "fedpath.cli", "demo", "--dir", str(folder), "--slides", "6", "--rounds", "500"]
    demo = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        events = folder / "server" / "events.jsonl"
        wait_until(lambda: events.exists() and "round_finished" in events.read_text(), "a round", 240)
        assert len(_processes_on(folder)) == 5  # the demo, the coordinator, three hospitals
        demo.terminate()
        assert demo.wait(30) == 130
        assert _processes_on(folder) == []
    finally:
        for pid in _processes_on(folder):
            os.kill(pid, signal.SIGKILL)


def _processes_on(folder: Path) -> list[int]:
    """Processes whose command line names the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and str(folder).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:  # ended meanwhile
            continue
    return found


class _References(HTMLParser):
    """Collects what a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in {"src", "href", "action"} and value and not value.startswith(("#", "data:")):
                self.outside.append(f"{tag} {name}={value}")
        if tag == "script":
            self.outside.append("script")
