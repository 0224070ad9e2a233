"""The page about an encode run: one HTML file that opens without a network.

Words and layout are in encode_report.html.j2 (autoescaped: every name that comes from a file is text, never markup),
looks in encode_report.css and, as every page of fedpath, in core/report/report.css.
"""

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np

from fedpath.client.slides.histogram import Figure, histogram, resolutions
from fedpath.client.slides.outcome import EncodeReport, SlideResult
from fedpath.client.slides.thumbnails import EDGE, jpeg
from fedpath.core.files import write_text

PAGE = "encode_report.html"
THUMBNAILS = "thumbnails"
_EDGES = ((60, EDGE), (300, 240), (2000, 160))
"""Up to how many pictures, and their longer edge in the page: it stays below about 12 MB."""
_QUALITY = 72
FEW = 0.2
"""A slide with under this share of the median's patches is named: tissue was missed there, or there is little."""


@dataclass(frozen=True, slots=True)
class _Picture:
    slide_id: str
    words: str
    wrong: str
    """What is wrong with the slide, if anything."""
    data_url: str
    link: str


def write_page(out: Path, report: EncodeReport, settings: Mapping[str, Any]) -> Path:
    """Write `encode_report.html`.

    Args:
        out: the folder of the run; pictures are taken from its thumbnails/<slide_id>.jpg, where there are any.
        report: what became of every slide.
        settings: of the run; mappings in it are laid out flat.

    Returns:
        The page.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    from fedpath.core.report.wording import counted, duration

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.globals.update(counted=counted)
    environment.filters.update(duration=duration)
    own, common = files("fedpath.client.slides"), files("fedpath.core.report")
    template = environment.from_string((own / "encode_report.html.j2").read_text(encoding="utf-8"))
    style = (common / "report.css").read_text(encoding="utf-8") + (own / "encode_report.css").read_text(
        encoding="utf-8"
    )
    there = sorted((*report.done, *report.skipped), key=lambda result: (result.patches, result.slide_id))
    median = float(np.median([result.patches for result in there])) if there else 0.0
    page = template.render(
        report=report,
        there=there,
        fresh={result.slide_id for result in report.done},
        few=[result for result in there if result.patches < FEW * median],
        partly=[result for result in there if result.failed],
        patches=sum(result.patches for result in there),
        figures=[(title, Markup(svg), caption) for title, svg, caption in _figures(there)],
        pictures=list(_pictures(out, report, there)),
        settings=list(_flat(settings)),
        style=Markup(style),
        median=median,
    )
    write_text(out / PAGE, page)
    return out / PAGE


def _figures(there: list[SlideResult]) -> list[Figure]:
    if not there:
        return []
    patches = [result.patches for result in there]
    return [
        histogram(patches, title="Patches a slide", unit="patches", caption=_patches_in_words),
        resolutions([result.mpp_level0 for result in there]),
    ]


def _patches_in_words(values: list[float]) -> str:
    low, middle, high = (f"{value:,.0f}" for value in np.quantile(values, (0, 0.5, 1)))
    return f"Fewest {low}, median {middle}, most {high}."


def _pictures(out: Path, report: EncodeReport, there: list[SlideResult]) -> Iterator[_Picture]:
    """Yield the thumbnails, those of failed slides first, smaller where there are many."""
    captions = [(bad.slide_id, "no feature file", bad.reason) for bad in report.quarantined]
    for result in there:
        wrong = f"{result.failed:,} unreadable" if result.failed else ""
        captions.append((result.slide_id, f"{result.patches:,} patches, {result.mpp_level0:.4g} µm/px", wrong))
    found = [(caption, path) for caption in captions if (path := out / THUMBNAILS / f"{caption[0]}.jpg").is_file()]
    edge = next((edge for most, edge in _EDGES if len(found) <= most), 0)
    for caption, path in found:
        stream = _shrunk(path.read_bytes(), edge) if edge else b""
        url = "data:image/jpeg;base64," + base64.b64encode(stream).decode("ascii") if stream else ""
        yield _Picture(*caption, url, f"{THUMBNAILS}/{quote(path.name)}")


def _shrunk(stream: bytes, edge: int) -> bytes:
    """Return a JPEG with a longer edge of at most ``edge``; nothing if it is none."""
    picture = cv2.imdecode(np.frombuffer(stream, np.uint8), cv2.IMREAD_COLOR) if stream else None
    if picture is None:
        return b""
    scale = edge / max(picture.shape)
    if scale >= 1:
        return stream
    size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return jpeg(np.ascontiguousarray(small[..., ::-1], np.uint8), _QUALITY)


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Yield settings as (name, value); what is not set is left out."""
    for key, value in settings.items():
        name = f"{above} {key}".strip().replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        elif value is not None and value != "":
            yield name, f"{value:g}" if isinstance(value, float) else str(value)
