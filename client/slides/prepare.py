"""What comes before reading patches: a slide is opened, hashed, searched for tissue, compared with what is there."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedpath.client.slides.encoders import EncoderFacts
from fedpath.client.slides.outcome import SlideResult
from fedpath.client.slides.outlines import tissue_of
from fedpath.client.slides.page import THUMBNAILS
from fedpath.client.slides.reader import Slide, slide_sha256
from fedpath.client.slides.settings import EncodeSettings
from fedpath.client.slides.thumbnails import thumbnail
from fedpath.client.slides.tiles import TileGrid
from fedpath.core.bags import FeatureMeta, read_bag, read_meta
from fedpath.core.errors import DataError
from fedpath.core.files import write_bytes

MIN_TISSUE = 0.25
"""A patch is encoded if at least this share of it is tissue."""


@dataclass(frozen=True, slots=True)
class Job:
    """One slide to encode."""

    path: Path
    out: Path
    """The folder of the feature files."""
    slide_mpp: float | None
    """µm/px of level 0, if the slide states none."""

    @property
    def slide_id(self) -> str:
        """Name of the slide."""
        return self.path.stem

    @property
    def target(self) -> Path:
        """The feature file."""
        return self.out / f"{self.slide_id}.h5"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A slide whose patches are to be read; who has it closes it."""

    slide: Slide
    corners_N2: NDArray[np.int64]
    """Of the patches, level-0 pixels, row by row."""
    meta: FeatureMeta
    """As it will be, but for the number of failed patches."""
    started: float
    """When its preparation began, by the monotonic clock."""


def prepare(job: Job, settings: EncodeSettings, encoder: EncoderFacts) -> Prepared | SlideResult:
    """Open a slide and see what is to be read of it; or return the result that is already there.

    Raises:
        DataError: the slide cannot be encoded.
    """
    started = time.monotonic()
    slide = Slide(job.path, slide_mpp=job.slide_mpp)
    try:
        found = _prepared(slide, job, settings, encoder, started)
    except BaseException:
        slide.close()
        raise
    if isinstance(found, SlideResult):
        slide.close()
    return found


def _prepared(
    slide: Slide, job: Job, settings: EncodeSettings, encoder: EncoderFacts, started: float
) -> Prepared | SlideResult:
    grid = TileGrid.of(
        width=slide.width, height=slide.height, mpp_level0=slide.mpp, mpp=settings.mpp, patch_px=settings.patch_px
    )
    tissue, method = tissue_of(slide, settings.outlines)
    meta = FeatureMeta(
        slide_id=slide.slide_id,
        encoder=encoder.name,
        encoder_sha256=encoder.sha256,
        mpp_level0=slide.mpp,
        mpp=settings.mpp,
        patch_px=settings.patch_px,
        patch_size_level0=grid.patch_size_level0,
        level0_width=slide.width,
        level0_height=slide.height,
        transform=encoder.transform,
        reader=slide.reader,
        slide_sha256=slide_sha256(job.path),
        failed_tiles=0,
        tissue=f"{method}; at least {MIN_TISSUE:g} of a patch",
    )
    whole = _already(job.target, meta)
    if whole is not None:
        return whole
    slide.level_for(settings.mpp)
    corners_N2 = grid.corners_in(tissue, slide.mpp, MIN_TISSUE)
    write_bytes(job.out / THUMBNAILS / f"{slide.slide_id}.jpg", thumbnail(slide, tissue, grid, corners_N2))
    if not len(corners_N2):
        raise DataError(
            f"{job.path}: no patch with tissue found",
            remedy="look at the slide; leave it out if it is blank, outline the tissue if it is not (--outlines)",
        )
    return Prepared(slide, corners_N2, meta, started)


def _already(target: Path, wanted: FeatureMeta) -> SlideResult | None:
    """Return the result a readable feature file of the same slide and settings holds, else None.

    The reader may differ: a newer OpenSlide is no reason to encode an archive again.
    """
    try:
        found = read_meta(target)
        bag = read_bag(target)
    except DataError:
        return None
    if replace(found, failed_tiles=0, reader=wanted.reader) != wanted:
        return None
    return SlideResult(found.slide_id, len(bag), found.failed_tiles, wanted.mpp_level0 or 0.0, tissue=found.tissue)
