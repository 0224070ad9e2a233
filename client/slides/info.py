"""What a slide's file says about its pixels. Labels, macro images and other header fields can carry names: not read."""

from dataclasses import dataclass
from pathlib import Path

from fedpath.client.slides.reader import Slide
from fedpath.core.errors import DataError

FROM_SLIDE, FROM_OPTION, NOWHERE = "the slide", "--slide-mpp", "not stated"


@dataclass(frozen=True, slots=True)
class LevelInfo:
    """A level of the pyramid."""

    width: int
    height: int
    downsample: float
    mpp: float | None


@dataclass(frozen=True, slots=True)
class SlideInfo:
    """What a slide is and how it is read."""

    slide_id: str
    path: str
    format: str
    """OpenSlide's name of it."""
    bytes: int
    """Of the file itself; some formats keep more in a folder beside it."""
    width: int
    height: int
    mpp: float | None
    """µm/px of level 0; None if unknown."""
    mpp_from: str
    levels: tuple[LevelInfo, ...]
    native: str
    """The native tiles that are read; empty where OpenSlide reads."""
    why_openslide: str

    @property
    def size_mm(self) -> tuple[float, float] | None:
        """Width and height of the scanned area."""
        return None if self.mpp is None else (self.width * self.mpp / 1000, self.height * self.mpp / 1000)


def slide_info(path: Path, *, slide_mpp: float | None = None) -> SlideInfo:
    """Return what a slide says; also of one that states no µm/px.

    Args:
        path: the slide.
        slide_mpp: µm/px of level 0, used only if the slide states none.

    Raises:
        DataError: it cannot be read.
    """
    slide, mpp_from = _opened(path, slide_mpp)
    with slide:
        known = mpp_from != NOWHERE
        return SlideInfo(
            slide_id=slide.slide_id,
            path=str(path),
            format=slide.vendor,
            bytes=path.stat().st_size,
            width=slide.width,
            height=slide.height,
            mpp=slide.mpp if known else None,
            mpp_from=mpp_from,
            levels=tuple(
                LevelInfo(level.width, level.height, level.downsample, level.mpp if known else None)
                for level in slide.levels
            ),
            native=slide.native,
            why_openslide=slide.why_openslide,
        )


def _opened(path: Path, slide_mpp: float | None) -> tuple[Slide, str]:
    try:
        return Slide(path), FROM_SLIDE
    except DataError as error:
        # If that opens, all that was missing is µm/px; any number does to look at the rest.
        try:
            slide = Slide(path, slide_mpp=slide_mpp if slide_mpp is not None else 1.0)
        except DataError:
            raise error from None
        return slide, NOWHERE if slide_mpp is None else FROM_OPTION
