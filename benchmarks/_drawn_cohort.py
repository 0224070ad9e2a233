"""The demo's cohort for benchmarks: hospitals of drawn slides with planted nests, their features and the truth.

A planted patch has at least half of its area inside a nest. Folders are as the demo lays them out.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from _federation import run_commands
from numpy.typing import NDArray

from fedpath.client.slides.encoders import describe
from fedpath.core.bags import Bag
from fedpath.core.cohort import SPLITS, Example, Split, load_cohort
from fedpath.core.cohort.examples import load_examples

SITES = ("A", "B", "C")
ENCODER, MPP, PATCH_PX = "seeded-conv", 0.5, 128
LABELS = ("normal", "tumour")
SLIDES = 36
"""A hospital; as in the demo."""
_PLANTED_SHARE = 0.5
_CELLS = 16
"""A patch's area is measured in so many cells squared."""

Nests = list[list[tuple[float, float]]]


@dataclass(frozen=True, slots=True)
class Hospital:
    """One hospital's folder: slides, truth, manifest.csv, features."""

    name: str
    folder: Path

    def examples(self, features: Path | None = None) -> dict[Split, list[Example]]:
        """Load all slides by split, with the features of another folder if one is named."""
        cohort = load_cohort(self.folder / "manifest.csv", labels=LABELS, name=self.name)
        where, width = features or self.folder / "features", describe(ENCODER).width
        return {split: load_examples(cohort, where, split, width=width) for split in SPLITS}

    def nests(self, slide_id: str) -> Nests:
        """Return the outlines of a slide's nests, level-0 pixels."""
        truth = json.loads((self.folder / "truth" / f"{slide_id}.json").read_text())
        return [[(x, y) for x, y in nest] for nest in truth["tumour"]]


def draw_cohort(folder: Path, seed: int, slides: int = SLIDES) -> dict[str, Hospital]:
    """Draw and encode the slides of all hospitals below ``folder``, a process a hospital, as the demo does."""
    hospitals = {name: Hospital(name, folder / name) for name in SITES}
    drawing, encoding = {}, {}
    for index, (name, hospital) in enumerate(hospitals.items()):
        place = ["--site", name, "--index", str(index), "--seed", str(seed), "--slides", str(slides)]
        drawing[f"draw-{name}"] = ["slides", "draw", hospital.folder, *place]
        how = ["--encoder", ENCODER, "--mpp", str(MPP), "--patch", str(PATCH_PX)]
        target = hospital.folder / "features"
        encoding[f"encode-{name}"] = ["slides", "encode", hospital.folder / "slides", "--out", target, *how]
    for commands in (drawing, encoding):
        run_commands(folder / "logs", **commands)
    return hospitals


def all_of(hospitals: Mapping[str, Hospital], split: Split) -> list[tuple[Hospital, Example]]:
    """Return every hospital's examples of a split."""
    return [(hospital, example) for hospital in hospitals.values() for example in hospital.examples()[split]]


def planted_patches(bag: Bag, nests: Nests) -> NDArray[np.bool_]:
    """Return which of a slide's patches (N) are planted."""
    edge = bag.patch_size_level0
    corners_N2 = np.round(bag.coords_N2.numpy() * (_CELLS / edge)).astype(int)
    width, height = corners_N2.max(axis=0) + _CELLS
    inside_HW = np.zeros((height, width), np.uint8)
    for nest in nests:
        cv2.fillPoly(inside_HW, [np.round(np.array(nest) * (_CELLS / edge)).astype(np.int32)], 1)
    shares = [inside_HW[y : y + _CELLS, x : x + _CELLS].mean() for x, y in corners_N2]
    return np.array(shares) >= _PLANTED_SHARE
