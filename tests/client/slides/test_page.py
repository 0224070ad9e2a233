"""The page about an encode run: self-contained, complete, and of bearable size."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from fedpath.client.slides.histogram import histogram, resolutions
from fedpath.client.slides.outcome import EncodeReport, Quarantined, SlideResult
from fedpath.client.slides.page import write_page
from fedpath.client.slides.thumbnails import jpeg

SETTINGS = {"encoder": {"name": "seeded-conv", "width": 512}, "mpp": 0.5, "slide_mpp": None, "outlines": Path("o/x")}
VOID = {"meta", "img", "line", "rect", "br"}


class Page(HTMLParser):
    """Collects what a browser would load, follow and announce; fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self._open: list[str] = []
        self.words = ""
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [values["href"] or ""] if "href" in values else []
        self.images += [values] if tag == "img" else []
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def page_of(
    out: Path, slides: int, *, failed: int = 0, bad: int = 0, picture: np.ndarray | None = None
) -> tuple[Page, int]:
    """Write the page of a run with pictures; return it and its bytes."""
    random = np.random.default_rng(0)
    results = [
        SlideResult(f"slide {i}", 200 + 10 * i, failed if i == 0 else 0, (0.25, 0.2526)[i % 2], 3.0)
        for i in range(slides)
    ]
    (out / "thumbnails").mkdir()
    for result in results:
        pixels = random.integers(120, 255, (40, 50, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        content = jpeg(pixels if picture is None else picture, 80)
        (out / "thumbnails" / f"{result.slide_id}.jpg").write_bytes(content)
    quarantined = tuple(Quarantined(f"bad {i}", f"/s/bad {i}.svs", "bad: <no> µm/px", "give it") for i in range(bad))
    report = EncodeReport(tuple(results[1:]), tuple(results[:1]), quarantined, ("notes & more.txt",))
    path = write_page(out, report, SETTINGS)
    assert path == out / "encode_report.html"
    return Page(path.read_text()), path.stat().st_size


@pytest.mark.parametrize("slides", [1, 20])
def test_nothing_is_loaded_from_elsewhere_and_pictures_have_words(tmp_path: Path, slides: int) -> None:
    page, _ = page_of(tmp_path, slides, failed=3, bad=2)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert len(page.images) == slides
    for image in page.images:
        assert (image["src"] or "").startswith("data:image/jpeg;base64,")
        assert "slide" in (image["alt"] or "")
    assert len(page.ids) == len(set(page.ids))
    for link in page.links:
        assert link.startswith("#") or (tmp_path / link.replace("%20", " ")).is_file(), link
        assert not link.startswith("#") or link[1:] in page.ids, link


def test_failures_stand_with_reason_and_remedy_as_text(tmp_path: Path) -> None:
    page, _ = page_of(tmp_path, 3, failed=4, bad=2)
    assert "3 of 5 slides have a feature file; 2 have none." in page.words
    assert "bad: <no> µm/px" in page.words
    assert "give it" in page.words
    assert "no" not in page.tags
    assert "4 unreadable" in page.words
    assert "notes & more.txt" in page.words


def test_settings_are_flat_and_without_what_is_not_set(tmp_path: Path) -> None:
    page, _ = page_of(tmp_path, 1)
    for shown in ("encoder name", "seeded-conv", "encoder width", "512", "o/x"):
        assert shown in page.words
    assert "slide mpp" not in page.words


def test_a_run_without_any_slide_has_a_page(tmp_path: Path) -> None:
    bad = Quarantined("bad", "bad.svs", "why", "do")
    path = write_page(tmp_path, EncodeReport((), (), (bad,), ()), {})
    page = Page(path.read_text())
    assert "No slide has a feature file." in page.words
    assert page.images == []


def test_pictures_that_are_missing_or_broken_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "thumbnails").mkdir()
    (tmp_path / "thumbnails" / "b.jpg").write_bytes(b"not a picture")
    results = tuple(SlideResult(name, 5, 0, 0.5) for name in "ab")
    page = Page(write_page(tmp_path, EncodeReport(results, (), (), ()), {}).read_text())
    assert page.images == []
    assert "All 2 slides have a feature file." in page.words


def test_slides_with_few_patches_come_first_and_are_named(tmp_path: Path) -> None:
    results = tuple(SlideResult(name, count, 0, 0.5) for name, count in (("x", 500), ("y", 20), ("z", 600)))
    text = write_page(tmp_path, EncodeReport(results, (), (), ()), {}).read_text()
    assert "Slides with few patches" in text
    names = re.findall(r'<th scope="row">(\w)</th>', text)
    assert names == ["y", "y", "x", "z"]


def test_a_failed_slide_is_shown_first_if_it_was_drawn(tmp_path: Path) -> None:
    (tmp_path / "thumbnails").mkdir()
    for name in ("good", "blank"):
        (tmp_path / "thumbnails" / f"{name}.jpg").write_bytes(jpeg(np.full((9, 9, 3), 200, np.uint8), 80))
    bad = Quarantined("blank", "blank.svs", "no patch with tissue found", "outline it")
    report = EncodeReport((SlideResult("good", 5, 0, 0.5),), (), (bad,), ())
    page = Page(write_page(tmp_path, report, {}).read_text())
    assert [(image["alt"] or "").partition(":")[0] for image in page.images] == ["blank", "good"]
    assert page.words.count("no patch with tissue found") == 2


def test_many_slides_stay_bearable(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(150, 255, (75, 100, 3)).astype(np.uint8).repeat(4, 0).repeat(4, 1)
    page, size = page_of(tmp_path, 400, picture=noise)
    assert len(page.images) == 400
    assert size < 6_000_000


def counted_in(svg: str) -> list[int]:
    return [int(n) for n in re.findall(r"<title>[^<]*: (\d+)</title>", svg)]


@pytest.mark.parametrize("values", [[7], [0, 0, 3], [5, 5, 5], [1, 15_000, 8_000, 20], list(range(1000))])
def test_every_slide_is_in_one_bar(values: list[int]) -> None:
    _, svg, _ = histogram(values, title="t", unit="u", caption=str)
    bars = re.findall(r"<title>([\d,]+) to ([\d,]+): (\d+)</title>", svg)
    assert 1 <= len(bars) <= 13
    for low, high, count in bars:
        low, high = (int(edge.replace(",", "")) for edge in (low, high))
        assert int(count) == sum(low <= value < high for value in values)
    assert sum(counted_in(svg)) == len(values)


def test_resolutions_that_differ_little_share_bars_only_when_there_are_many() -> None:
    assert counted_in(resolutions([0.25, 0.2526, 0.25])[1]) == [2, 1]
    many = resolutions(list(np.linspace(0.25, 0.252, 40)))[1]
    assert sum(counted_in(many)) == 40
    assert len(counted_in(many)) <= 12
