"""Whether the slides of a folder can be encoded: before a night of encoding, not after it. Seconds a slide."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedpath.client.slides.folders import find_slides
from fedpath.client.slides.reader import Slide, UnreadableError
from fedpath.core.errors import DataError

TILES, _EDGE = 8, 256
"""Tiles of each level that are read, and their edge in pixels."""
Progress = Callable[[str, int, int], None]
"""Called with a slide_id, the slides checked before it, and all."""


@dataclass(frozen=True, slots=True)
class SlideCheck:
    """What became of one slide's check."""

    slide_id: str
    path: str
    mpp: float | None
    """µm/px of level 0; None if it could not be opened."""
    reader: str
    """What reads it: native tiles, or OpenSlide and why."""
    tiles: int
    failed: int
    """Tiles tried, and those of them that cannot be read."""
    reason: str = ""
    """Empty if the slide is good."""
    remedy: str = ""

    @property
    def good(self) -> bool:
        """Whether nothing is wrong with it."""
        return not self.reason


def check_slides(
    slides: Path, *, slide_mpp: float | None = None, tiles: int = TILES, progress: Progress | None = None
) -> list[SlideCheck]:
    """Open every slide, and read random tiles of every level; the same ones every time.

    Args:
        slides: a folder, searched with its subfolders, or a single slide.
        slide_mpp: µm/px of level 0 for slides that state none.
        tiles: of each level.
        progress: called before each slide.

    Returns:
        One check a slide, in order of name; slides that share a name are one.

    Raises:
        DataError: no slides there.
    """
    found = find_slides(slides)
    checks = [SlideCheck(bad.slide_id, bad.path, None, "", 0, 0, bad.reason, bad.remedy) for bad in found.doubled]
    for index, path in enumerate(found.slides):
        if progress is not None:
            progress(path.stem, index, len(found.slides))
        checks.append(check_slide(path, slide_mpp=slide_mpp, tiles=tiles))
    return sorted(checks, key=lambda check: check.slide_id)


def check_slide(path: Path, *, slide_mpp: float | None = None, tiles: int = TILES) -> SlideCheck:
    """Check one slide; what is wrong with it is in the result."""
    try:
        slide = Slide(path, slide_mpp=slide_mpp)
    except DataError as error:
        return SlideCheck(path.stem, str(path), None, "", 0, 0, error.message, error.remedy)
    with slide:
        reader = slide.native or f"OpenSlide ({slide.why_openslide})"
        choice = random.Random(slide.slide_id)
        tried, failed = 0, dict[int, int]()
        try:
            for number, level in enumerate(slide.levels):
                edge = round(_EDGE * level.downsample)
                for _ in range(tiles):
                    x = choice.randrange(max(1, slide.width - edge + 1))
                    y = choice.randrange(max(1, slide.height - edge + 1))
                    tried += 1
                    try:
                        slide.read(x, y, mpp=level.mpp, size=_EDGE)
                    except UnreadableError:
                        failed[number] = failed.get(number, 0) + 1
        except DataError as error:
            count = sum(failed.values()) + 1
            return SlideCheck(slide.slide_id, str(path), slide.mpp, reader, tried, count, error.message, error.remedy)
        reason = remedy = ""
        if failed:
            where = ", ".join(f"{count} of level {number}" for number, count in failed.items())
            reason = f"{path}: {sum(failed.values())} of {tried} random tiles cannot be read ({where})"
            remedy = "copy it again from the scanner; encoded as it is, it loses the patches there"
        return SlideCheck(slide.slide_id, str(path), slide.mpp, reader, tried, sum(failed.values()), reason, remedy)
