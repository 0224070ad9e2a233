import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fedpath.core.monitoring.lookups import certificate, free_bytes
from fedpath.core.monitoring.metrics import BUILD, Metrics, Row, Series

ROWS = (
    BUILD,
    Row("fedpath_told_total", "counter", ("kind",), "Things told.", known=[("a",), ("b",)]),
    Row("fedpath_height_bytes", "gauge", ("run",), "How high."),
    Row("fedpath_wait_seconds", "histogram", ("run", "phase"), "How long."),
    Row("fedpath_seen_bytes", "gauge", ("site",), "Looked up.", looked_up=True),
    Row("fedpath_passed_total", "counter", (), "Looked up as well.", looked_up=True),
)


def look() -> Iterator[Series]:
    yield "fedpath_seen_bytes", {"site": "A"}, 5.0
    yield "fedpath_passed_total", {}, 7.0


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
        if sample.name.startswith("fedpath_")
    }


def test_series_are_kept_or_looked_up() -> None:
    metrics = Metrics(ROWS, "server", look)
    metrics.count("fedpath_told_total", 2, kind="a")
    metrics.set("fedpath_height_bytes", 3, run="r1")
    metrics.observe("fedpath_wait_seconds", 20, run="r1", phase="keep")
    found = samples(metrics)
    assert found["fedpath_told_total", (("kind", "a"),)] == 2
    assert found["fedpath_told_total", (("kind", "b"),)] == 0  # known from the start
    assert found["fedpath_height_bytes", (("run", "r1"),)] == 3
    assert found["fedpath_wait_seconds_sum", (("phase", "keep"), ("run", "r1"))] == 20
    assert found["fedpath_wait_seconds_bucket", (("le", "10.0"), ("phase", "keep"), ("run", "r1"))] == 0
    assert found["fedpath_wait_seconds_bucket", (("le", "30.0"), ("phase", "keep"), ("run", "r1"))] == 1
    assert found["fedpath_seen_bytes", (("site", "A"),)] == 5
    assert found["fedpath_passed_total", ()] == 7
    assert not [name for name, _ in found if name.endswith("_created")]


def test_a_run_is_forgotten() -> None:
    metrics = Metrics(ROWS, "server", look)
    for run in ("r1", "r2"):
        metrics.set("fedpath_height_bytes", 3, run=run)
        metrics.observe("fedpath_wait_seconds", 1, run=run, phase="keep")
    metrics.forget_run("r1")
    assert {dict(labels)["run"] for _, labels in samples(metrics) if "run" in dict(labels)} == {"r2"}


def test_two_processes_worth_of_metrics_do_not_meet() -> None:
    first, second = Metrics(ROWS, "server", look), Metrics(ROWS, "client", look)
    first.count("fedpath_told_total", kind="a")
    assert samples(second)["fedpath_told_total", (("kind", "a"),)] == 0


def test_promtool_accepts_what_is_written() -> None:
    metrics = Metrics(ROWS, "server", look)
    metrics.observe("fedpath_wait_seconds", 1, run="r1", phase="keep")
    done = subprocess.run(["promtool", "check", "metrics"], input=metrics.text(), capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_what_is_not_there_gives_no_series(tmp_path: Path) -> None:
    (tmp_path / "broken.crt").write_text("no certificate")
    assert list(certificate(tmp_path / "broken.crt", "server")) == []
    assert list(certificate(tmp_path / "gone.crt", "server")) == []
    found = list(free_bytes("fedpath_disk", {"state": tmp_path, "features": tmp_path / "gone"}))
    assert [labels for _, labels, _ in found] == [{"folder": "state"}]
    assert found[0][2] > 0


@pytest.mark.parametrize("name", ["fedpath_unknown", "fedpath_seen_bytes"])
def test_only_rows_that_are_kept_are_counted(name: str) -> None:
    with pytest.raises(KeyError):
        Metrics(ROWS, "server", look).count(name)
