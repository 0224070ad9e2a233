"""The slides that feature files were made from: where they lie now, and whether they are still the same bytes."""

from collections.abc import Iterable
from pathlib import Path

from fedpath.client.slides.folders import find_slides
from fedpath.client.slides.reader import slide_sha256
from fedpath.core.bags.store import FeatureMeta, is_own, read_meta
from fedpath.core.config import SiteConfig
from fedpath.core.config.site import SlidesSection
from fedpath.core.errors import DataError, RefusedError

_ENCODE = "encode the slide with `fedpath slides encode`"


def slides_of(config: SiteConfig, what: str) -> SlidesSection:
    """Return where this hospital's slides lie.

    Args:
        config: site.toml.
        what: reads them.

    Raises:
        RefusedError: it does not say where.
    """
    if config.slides is None:
        raise RefusedError(
            f"site {config.site.name} refuses: {what} reads slides, and its site.toml names no folder of slides",
            remedy="set slides.folder in site.toml",
        )
    return config.slides


def find_originals(folder: Path, slide_ids: Iterable[str]) -> dict[str, Path]:
    """Return where each slide lies below ``folder``, by its name: one that was moved there counts.

    Raises:
        DataError: naming a slide that is not there, or two files of one name.
    """
    found = find_slides(folder)
    by_name = {path.stem: path for path in found.slides}
    wanted = sorted(slide_ids)
    for doubled in found.doubled:
        if doubled.slide_id in wanted:
            raise DataError(doubled.reason, remedy=doubled.remedy)
    missing = [slide_id for slide_id in wanted if slide_id not in by_name]
    if missing:
        more = f" (and {len(missing) - 1} more of {len(wanted)})" if len(missing) > 1 else ""
        raise DataError(
            f"{folder}: slide '{missing[0]}' is not there{more}",
            remedy="move it below that folder, or correct slides.folder in site.toml",
        )
    return {slide_id: by_name[slide_id] for slide_id in wanted}


def origin_of_features(path: Path, slide_id: str) -> FeatureMeta:
    """Return how the feature file ``path`` was made, which must be from a slide's pixels.

    Raises:
        DataError: missing or broken, made by another tool, not of this slide, or not from pixels.
    """
    if not path.is_file():
        raise DataError(f"{path}: no feature file for slide '{slide_id}'", remedy=_ENCODE)
    if not is_own(path):
        raise DataError(
            f"{path}: made by another tool, so it does not tell which pixels its patches are", remedy=_ENCODE
        )
    meta = read_meta(path)
    if meta.slide_id != slide_id:
        raise DataError(f"{path}: holds the features of slide '{meta.slide_id}'", remedy=_ENCODE)
    if meta.mpp is None or meta.patch_px is None or not meta.slide_sha256:
        raise DataError(f"{path}: was not made from a slide's pixels", remedy=_ENCODE)
    return meta


def check_unchanged(path: Path, meta: FeatureMeta) -> None:
    """Check that a slide's bytes are those that its features were made from.

    Raises:
        DataError: naming the slide.
    """
    if slide_sha256(path) != meta.slide_sha256:
        raise DataError(
            f"{path}: slide '{meta.slide_id}' has changed since it was encoded",
            remedy="put back the slide that was encoded, or encode it again with `fedpath slides encode`",
        )
