"""Files to look at, and to edit, what is taken for tissue: a picture, a mask and outlines for QuPath a slide."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from fedpath.client.slides.folders import find_slides
from fedpath.client.slides.geojson import write_tissue
from fedpath.client.slides.outcome import Quarantined
from fedpath.client.slides.outlines import tissue_of
from fedpath.client.slides.reader import Slide
from fedpath.client.slides.thumbnails import draw_contours, jpeg, picture_of
from fedpath.core.errors import DataError
from fedpath.core.files import write_bytes

PICTURES, MASKS, GEOJSON = "pictures", "masks", "geojson"
_EDGE, _QUALITY = 1200, 85
Progress = Callable[[str, int, int], None]
"""Called with a slide_id, the slides done before it, and all."""


@dataclass(frozen=True, slots=True)
class Reviewed:
    """A slide whose tissue was drawn."""

    slide_id: str
    area_mm2: float
    method: str
    kept: tuple[str, ...]
    """Files that were there and may have been edited: not written."""


def draw_tissue(
    slides: Path,
    out: Path,
    *,
    outlines: Path | None = None,
    slide_mpp: float | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[list[Reviewed], list[Quarantined]]:
    """Write pictures/<slide_id>.jpg, masks/<slide_id>.png and geojson/<slide_id>.geojson for every slide.

    Args:
        slides: a folder, searched with its subfolders, or a single slide.
        out: made if need be.
        outlines: people's outlines to use where there are some, as in `encode_folder`.
        slide_mpp: µm/px of level 0 for slides that state none.
        overwrite: masks and GeoJSON that are there already; otherwise they are kept.
        progress: called before each slide.

    Returns:
        Slides that were drawn, and those that could not be.

    Raises:
        DataError: no slides there.
    """
    found = find_slides(slides)
    drawn: list[Reviewed] = []
    bad = list(found.doubled)
    for index, path in enumerate(found.slides):
        if progress is not None:
            progress(path.stem, index, len(found.slides))
        try:
            with Slide(path, slide_mpp=slide_mpp) as slide:
                drawn.append(_draw(slide, out, outlines, overwrite))
        except DataError as error:
            bad.append(Quarantined(path.stem, str(path), error.message, error.remedy))
    return drawn, bad


def _draw(slide: Slide, out: Path, outlines: Path | None, overwrite: bool) -> Reviewed:
    tissue, method = tissue_of(slide, outlines)
    picture_HW3 = picture_of(slide, tissue, _EDGE)
    draw_contours(picture_HW3, tissue, thickness=2)
    name = slide.slide_id
    write_bytes(out / PICTURES / f"{name}.jpg", jpeg(picture_HW3, _QUALITY))
    mask, geojson = out / MASKS / f"{name}.png", out / GEOJSON / f"{name}.geojson"
    kept = tuple(str(path) for path in (mask, geojson) if path.exists() and not overwrite)
    if str(mask) not in kept:
        _, stream = cv2.imencode(".png", np.where(tissue.mask_HW, 255, 0).astype(np.uint8))
        write_bytes(mask, bytes(stream))
    if str(geojson) not in kept:
        write_tissue(geojson, tissue, slide.mpp, name)
    return Reviewed(name, tissue.area_mm2, method, kept)
