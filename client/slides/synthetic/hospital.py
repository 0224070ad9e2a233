"""Make a hospital: its slides, its manifest, and the truth about every planted nest."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from fedpath.client.slides.synthetic.draw import draw_slide
from fedpath.client.slides.synthetic.knobs import DRAW_MPP, JPEG_QUALITY, TILE_PX, Knobs, Splits
from fedpath.client.slides.synthetic.stain import colour, jittered, look_of
from fedpath.core.errors import DataError
from fedpath.core.files import replacing, write_json, write_text

LABELS = ("normal", "tumour")
FEWEST = 6
"""Slides a hospital needs so that each split can hold both labels."""


@dataclass(frozen=True, slots=True)
class _Case:
    """A row of the manifest."""

    patient_id: str
    slide_id: str
    label: str
    split: str


def make_hospital(
    folder: Path,
    *,
    site: str,
    index: int,
    seed: int,
    slides: int,
    progress: Callable[[int, int], None] | None = None,
    knobs: Knobs | None = None,
) -> None:
    """Write `slides/<slide_id>.tif`, `manifest.csv` and `truth/<slide_id>.json` below ``folder``.

    The same arguments give the same bytes.

    Args:
        folder: made if need be.
        site: the hospital's name, first part of its slides' names.
        index: which look it has (dyes, µm/px), from 0.
        seed: of everything drawn.
        slides: how many, half of them with tumour.
        progress: told (slides done, slides in all) after each.
        knobs: how hard the cohort is.

    Raises:
        DataError: fewer than 6 slides are asked for.
    """
    if slides < FEWEST:
        raise DataError(f"hospital {site}: {slides} slides are too few", remedy=f"ask for at least {FEWEST}")
    knobs = knobs or Knobs()
    look = look_of(index)
    cases = _deal(np.random.default_rng([seed, index]), site, slides, knobs.splits)
    for number, case in enumerate(cases):
        random = np.random.default_rng([seed, index, number])
        drawing = draw_slide(random, knobs.difficulty, look.mix, positive=case.label == LABELS[1])
        own = jittered(look, random, knobs.difficulty.strength, knobs.difficulty.stain_jitter)
        write_slide(folder / "slides" / f"{case.slide_id}.tif", colour(drawing, own), look.mpp)
        scale = DRAW_MPP / look.mpp
        nests = [np.round(nest * scale, 1).tolist() for nest in drawing.nests]
        truth = {"slide_id": case.slide_id, "label": case.label, "mpp_level0": look.mpp, "tumour": nests}
        write_json(folder / "truth" / f"{case.slide_id}.json", truth)
        if progress is not None:
            progress(number + 1, slides)
    write_text(folder / "manifest.csv", _csv(cases))


def write_slide(path: Path, drawn_SS3: NDArray[np.uint8], mpp: float | None, *, levels: int = 3) -> None:
    """Write a pyramidal tiled-JPEG TIFF that OpenSlide opens as `generic-tiff`.

    Args:
        path: the `.tif` file.
        drawn_SS3: RGB at the drawing's resolution.
        mpp: µm/px of level 0, in its resolution tags; None leaves the slide without and at the drawn size.
        levels: levels of the pyramid, each half the size of the one before.
    """
    size = drawn_SS3.shape[0] if mpp is None else round(drawn_SS3.shape[0] * DRAW_MPP / mpp)
    enlarging = size > drawn_SS3.shape[0]
    level_HW3 = cv2.resize(drawn_SS3, (size, size), interpolation=cv2.INTER_LINEAR if enlarging else cv2.INTER_AREA)
    with replacing(path) as temporary, tifffile.TiffWriter(temporary) as tiff:
        for level in range(levels):
            if level:
                halved = level_HW3.shape[1] // 2, level_HW3.shape[0] // 2
                level_HW3 = cv2.resize(level_HW3, halved, interpolation=cv2.INTER_AREA)
            per_cm = None if mpp is None else 10_000 / (mpp * 2**level)
            tiff.write(
                level_HW3,
                tile=(TILE_PX, TILE_PX),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": JPEG_QUALITY},
                subsampling=(2, 2),
                subfiletype=int(level > 0),
                resolution=None if per_cm is None else (per_cm, per_cm),
                resolutionunit=None if per_cm is None else "CENTIMETER",
                metadata=None,
                software=False,
                maxworkers=1,
            )


def _deal(random: np.random.Generator, site: str, slides: int, splits: Splits) -> list[_Case]:
    """Deal slides to patients and patients to splits, each label by itself; slides in random order."""
    cases: list[_Case] = []
    patients = 0
    for positive, label in enumerate(LABELS):
        wanted = slides // 2 if positive else slides - slides // 2
        # At least three patients of each label remain: one for each split.
        doubled = min(round(splits.two_slides * wanted / (1 + splits.two_slides)), wanted // 2, wanted - 3)
        # Two slides first, so that the training split, dealt first, holds most of these patients.
        sizes = [2] * doubled + [1] * (wanted - 2 * doubled)
        order = random.permutation(len(sizes))
        # Small hospitals, too, have a patient of each label in each split.
        validation = max(1, round(splits.validation * len(sizes)))
        train = min(max(1, round(splits.train * len(sizes))), len(sizes) - validation - 1)
        for place, chosen in enumerate(order):
            split = "train" if place < train else "validation" if place < train + validation else "test"
            patients += 1
            cases.extend(_Case(f"{site}-P{patients:03d}", "", label, split) for _ in range(sizes[chosen]))
    shuffled = [cases[chosen] for chosen in random.permutation(len(cases))]
    return [_Case(c.patient_id, f"{site}-{n:03d}", c.label, c.split) for n, c in enumerate(shuffled, start=1)]


def _csv(cases: list[_Case]) -> str:
    """Return the manifest."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["patient_id", "slide_id", "label", "split"])
    writer.writerows([case.patient_id, case.slide_id, case.label, case.split] for case in cases)
    return text.getvalue()
