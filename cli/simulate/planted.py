"""A cohort that is drawn: bags of noise, in which those of a class have a few instances of their own.

It shows how a federation runs and what it costs; it says nothing about medicine.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fedpath.core.bags.store import FeatureMeta, write_features
from fedpath.core.config import FederationConfig

PATCHES = 24
"""Of a bag."""
_PLANTED = 4
_STRENGTH = 3.0
"""Distance of planted instances from the others, in standard deviations of those."""
_SPLITS = ("train",) * 6 + ("validation",) * 2 + ("test",) * 2


def names(count: int) -> list[str]:
    """Return the patients' names; each has one slide, of the same name."""
    width = len(str(count))
    return [f"patient-{number:0{width}d}" for number in range(1, count + 1)]


def manifest(config: FederationConfig, count: int) -> str:
    """Return the manifest of ``count`` patients: classes in turn, 60 % to train on, 20 % each to validate and test."""
    labels = config.task.labels
    rows = [
        f"{name},{name},{labels[index % len(labels)]},{_SPLITS[index // len(labels) % len(_SPLITS)]}"
        for index, name in enumerate(names(count))
    ]
    return "\n".join(["patient_id,slide_id,label,split", *rows, ""])


def draw_bags(config: FederationConfig, folder: Path, count: int, which: Iterable[int], seed: int) -> None:
    """Write the feature files of some of ``count`` patients, as the federation's feature contract asks for.

    A patient's bag depends on the seed and its number alone, so any process may draw any of them.

    Args:
        config: federation.toml.
        folder: of the feature files.
        count: of all patients.
        which: numbers of patients, from 0; those that are there already are left as they are.
        seed: of the drawing.
    """
    features, n_classes, all_names = config.features, len(config.task.labels), names(count)
    directions_CD = _directions(n_classes, features.width, seed)
    patch_px, mpp = features.patch_px or 256, features.mpp
    coords_N2 = np.stack([np.arange(PATCHES) * patch_px, np.zeros(PATCHES, dtype=int)], axis=1)
    for index in which:
        name, random = all_names[index], np.random.default_rng([seed, index])
        path = folder / f"{name}.h5"
        if path.exists():
            continue
        features_ND = random.normal(size=(PATCHES, features.width))
        features_ND[:_PLANTED] += _STRENGTH * directions_CD[index % n_classes]
        meta = FeatureMeta(
            slide_id=name,
            encoder=features.encoder,
            encoder_sha256=features.encoder_sha256 or "0" * 64,
            mpp_level0=mpp,
            mpp=mpp,
            patch_px=features.patch_px,
            patch_size_level0=patch_px,
            level0_width=PATCHES * patch_px,
            level0_height=patch_px,
            transform="none",
            reader="drawn",
            slide_sha256="0" * 64,
            failed_tiles=0,
        )
        write_features(path, features_ND, coords_N2, meta)


def _directions(n_classes: int, width: int, seed: int) -> np.ndarray:
    """Return each class's direction (C×D), of length 1; the first class has none: its bags are noise alone."""
    directions_CD = np.random.default_rng([seed, 2**32]).normal(size=(n_classes, width))
    directions_CD /= np.linalg.norm(directions_CD, axis=1, keepdims=True)
    directions_CD[0] = 0
    return directions_CD
