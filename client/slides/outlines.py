"""Where tissue is by a person's own outlines, or, where there are none, by itself."""

import hashlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from fedpath.client.slides.geojson import read_areas
from fedpath.client.slides.polygons import fill
from fedpath.client.slides.reader import Slide
from fedpath.client.slides.tissue import METHOD, OVERVIEW_MPP, Tissue, find_tissue
from fedpath.core.errors import DataError

SUFFIXES = (".geojson", ".png")
_COARSEST_MASK = 64.0
"""µm/px: beyond, a pixel of the mask is a patch."""


def tissue_of(slide: Slide, outlines: Path | None) -> tuple[Tissue, str]:
    """Return where tissue is on a slide, and how that was found, for the feature file.

    A slide without outlines is searched automatically; so is one on which only areas of class Ignore* are outlined,
    which are then left out.

    Args:
        slide: an open slide.
        outlines: a folder with <slide_id>.geojson or <slide_id>.png (white is tissue) for some slides, one such file,
            or none.

    Returns:
        Tissue, and the method; it names the hash of the outlines.

    Raises:
        DataError: the outlines cannot be used.
    """
    path = None if outlines is None else _file_of(slide, outlines)
    if path is None:
        return find_tissue(slide), METHOD
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}", remedy="check the path and its rights") from None
    source = f"sha256 {hashlib.sha256(content).hexdigest()[:16]}"
    if path.suffix.lower() == ".png":
        return _from_mask(slide, path, content), f"mask {source}"
    areas = read_areas(path, content, slide.width, slide.height)
    mpp = slide.whole_mpp(OVERVIEW_MPP)
    scale = mpp / slide.mpp
    shape = max(1, round(slide.height / scale)), max(1, round(slide.width / scale))
    ignored_HW = fill(areas.ignored, shape, scale)
    if not areas.tissue:
        found = find_tissue(slide)
        return replace(found, mask_HW=found.mask_HW & ~ignored_HW), f"{METHOD}, without outlines {source}"
    return Tissue(fill(areas.tissue, shape, scale) & ~ignored_HW, mpp), f"outlines {source} at {OVERVIEW_MPP:g} um/px"


def _file_of(slide: Slide, outlines: Path) -> Path | None:
    """Return the slide's outlines; None if the folder has none of it."""
    # QuPath keeps the image's suffix in the name where it has one.
    names = [f"{name}{suffix}" for name in dict.fromkeys((slide.slide_id, slide.path.name)) for suffix in SUFFIXES]
    if outlines.is_file():
        if outlines.name not in names:
            raise DataError(
                f"{outlines}: by its name not of slide {slide.slide_id}",
                remedy=f"name it {names[0]}; with several slides, give the folder with the outlines",
            )
        return outlines
    if not outlines.is_dir():
        raise DataError(f"{outlines}: no such file or folder", remedy="check the path")
    found = [path for name in names if (path := outlines / name).is_file()]
    if len(found) > 1:
        raise DataError(f"{outlines}: {' and '.join(p.name for p in found)} outline one slide", remedy="keep one")
    if not found and not any(path.suffix.lower() in SUFFIXES for path in outlines.iterdir()):
        raise DataError(
            f"{outlines}: no outlines inside",
            remedy="give the folder that holds <slide_id>.geojson or <slide_id>.png itself, not one above it",
        )
    return found[0] if found else None


def _from_mask(slide: Slide, path: Path, content: bytes) -> Tissue:
    """Return the white of a mask of the whole slide."""
    try:
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) if content else None
    except cv2.error:
        picture = None
    if picture is None:
        raise DataError(f"{path}: not a PNG that can be read", remedy="save the mask as PNG again")
    height, width = picture.shape[:2]
    mpp = slide.mpp * max(slide.width / width, slide.height / height)
    wanted = slide.width * slide.mpp / mpp, slide.height * slide.mpp / mpp
    if abs(wanted[0] - width) > 1.5 or abs(wanted[1] - height) > 1.5:
        raise DataError(
            f"{path}: {width}×{height} px do not have the shape of a slide of {slide.width}×{slide.height} px",
            remedy="the mask must show the whole slide, uncropped and unrotated",
        )
    if mpp > _COARSEST_MASK:
        raise DataError(
            f"{path}: {mpp:.0f} µm/px is too coarse for a mask",
            remedy=f"draw at {_COARSEST_MASK:g} µm/px or finer; `fedpath slides tissue` writes masks of 8 µm/px",
        )
    whole = slide.whole_mpp(OVERVIEW_MPP)
    ours = (round(slide.width * slide.mpp / whole), round(slide.height * slide.mpp / whole)) == (width, height)
    return Tissue(_white(picture), whole if ours else mpp)


def _white(picture: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Return what is white rather than black, and not transparent."""
    if picture.dtype == np.uint16:
        picture = (picture.view(np.uint16) >> 8).astype(np.uint8)
    channels_HWC = np.asarray(picture, np.uint8).reshape(*picture.shape[:2], -1)
    colours = channels_HWC.shape[2] - (channels_HWC.shape[2] in (2, 4))
    white_HW: NDArray[np.bool_] = channels_HWC[..., :colours].mean(axis=2) > 127
    if colours < channels_HWC.shape[2]:
        white_HW &= channels_HWC[..., -1] > 127
    return white_HW
