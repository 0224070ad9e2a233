"""The estimate counts bytes of slides, and neither the work nor the time of slides that were done before."""

from pathlib import Path

import pytest

from fedpath.cli.slides.progress import in_words
from fedpath.client.slides.time_left import TimeLeft, size_of


def test_time_goes_with_bytes() -> None:
    left = TimeLeft({"a": 100, "b": 300, "c": 400})
    assert left.left(0.0) is None
    left.update("a", 0.0, 10.0)
    assert left.left(10.0) is None
    left.update("a", 0.5, 15.0)
    assert left.left(15.0) == pytest.approx(5 / 50 * 750)
    left.update("a", 1.0, 20.0)
    assert left.left(20.0) == pytest.approx(10 / 100 * 700)
    left.no_work("c")
    assert left.left(20.0) == pytest.approx(10 / 100 * 300)
    left.update("b", 1.0, 50.0)
    assert left.left(50.0) == 0


def test_a_slides_own_folder_counts(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a.mrxs").write_bytes(b"12")
    (tmp_path / "a" / "Data0.dat").write_bytes(b"345")
    assert size_of(tmp_path / "a.mrxs") == 5


@pytest.mark.parametrize(
    ("seconds", "words"), [(3.4, "3 s"), (89, "89 s"), (100, "2 min"), (5300, "88 min"), (7800, "2 h 10 min")]
)
def test_durations_are_said_as_people_say_them(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
