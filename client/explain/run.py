"""Pictures for many slides: one that cannot be drawn is named, and the others are drawn."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedpath.client.explain.gallery import write_gallery
from fedpath.client.explain.geojson import write_geojson
from fedpath.client.explain.heatmap import Mode, attention_heatmap, save_scores
from fedpath.client.explain.scores import MEAN, Explained, explain
from fedpath.client.slides.folders import FoundSlides, find_slides
from fedpath.core.errors import DataError
from fedpath.core.files import write_bytes
from fedpath.core.models.checkpoint import load_model

Kind = Literal["heatmap", "gallery", "geojson"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which pictures, of what."""

    kind: Kind
    model: Path
    features: Path
    """A feature file, or a folder of them."""
    out: Path
    slides: Path | None = None
    """A slide or a folder of them."""
    branch: str = MEAN
    """`mean`, `all`, or a number from 1."""
    scores: Mode = "rank"
    """What colours a heatmap."""
    count: int = 12
    """Patches of a gallery, of each kind."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What became of one feature file."""

    slide_id: str
    said: str
    """The predicted class with its probability, or why nothing was drawn."""
    files: tuple[Path, ...] = ()
    remedy: str = ""
    """What to do where nothing was drawn."""


def draw(wanted: Wanted, progress: Callable[[str, int, int], None] | None = None) -> Iterator[Drawn]:
    """Draw and yield what became of each slide.

    Args:
        wanted: what to draw.
        progress: called with a slide_id, the slides before it and all of them.

    Raises:
        DataError: the model or the folders cannot be read.
        ConfigError: the model has no such branch.
    """
    model, metadata = load_model(wanted.model)
    labels = [str(label) for label in json.loads(metadata["labels"])]
    files = _feature_files(wanted.features)
    slides = None if wanted.slides is None else find_slides(wanted.slides)
    for index, path in enumerate(files):
        if progress is not None:
            progress(path.stem, index, len(files))
        try:
            explained = explain(model, metadata, labels, path)
            slide = None if slides is None else _slide_of(path.stem, slides, wanted.slides)
            drawn = [
                file for branch in explained.branches(wanted.branch) for file in _one(wanted, explained, branch, slide)
            ]
        except DataError as error:
            yield Drawn(path.stem, error.message, remedy=error.remedy)
            continue
        probability = explained.probabilities[explained.predicted]
        yield Drawn(path.stem, f"{explained.predicted} ({probability:.2f})", tuple(drawn))


def _one(wanted: Wanted, explained: Explained, branch: str, slide: Path | None) -> list[Path]:
    """Draw one branch of one slide; return the files."""
    stem = explained.slide_id if branch == MEAN else f"{explained.slide_id}.branch-{branch}"
    if wanted.kind == "geojson":
        path = wanted.out / f"{stem}.geojson"
        write_geojson(path, explained, branch)
        return [path]
    if wanted.kind == "gallery":
        if slide is None:
            raise DataError("a gallery is cut from slides", remedy="name their folder with --slides")
        return [write_gallery(wanted.out / stem, slide, explained, branch=branch, count=wanted.count)]
    meta = explained.meta
    known = meta.level0_width is not None and meta.level0_height is not None
    picture = attention_heatmap(
        slide,
        explained.bag,
        explained.attention(branch),
        probabilities=explained.probabilities,
        mode=wanted.scores,
        mpp_level0=meta.mpp_level0,
        size_level0=(meta.level0_width or 0, meta.level0_height or 0) if known else None,
        whose=_whose(explained, branch),
    )
    path, table = wanted.out / f"{stem}.png", wanted.out / f"{stem}.csv"
    write_bytes(path, picture)
    save_scores(table, explained.bag.coords_N2.numpy(), explained.attention(branch))
    return [path, table]


def _whose(explained: Explained, branch: str) -> str:
    """Return what is drawn, in words."""
    count = len(explained.attention_KN)
    if count == 1:
        return "attention"
    return f"attention (mean of {count})" if branch == MEAN else f"attention of branch {branch} of {count}"


def _feature_files(features: Path) -> list[Path]:
    """Return the feature files.

    Raises:
        DataError: none there.
    """
    if features.is_file():
        return [features]
    found = sorted(features.glob("*.h5")) if features.is_dir() else []
    if not found:
        raise DataError(f"{features}: no feature files", remedy="name a folder that `fedpath slides encode` wrote")
    return found


def _slide_of(slide_id: str, found: FoundSlides, folder: Path | None) -> Path:
    """Return a slide's file.

    Raises:
        DataError: it is not there, or there are two.
    """
    for doubled in found.doubled:
        if doubled.slide_id == slide_id:
            raise DataError(doubled.reason, remedy=doubled.remedy)
    slide = next((path for path in found.slides if path.stem == slide_id), None)
    if slide is None:
        raise DataError(
            f"{folder}: slide '{slide_id}' is not there", remedy="name the folder the features were made from"
        )
    return slide
