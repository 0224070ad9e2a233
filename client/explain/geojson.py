"""Attention as objects for QuPath: a square a patch, with its scores as measurements, coloured by rank."""

import json
import uuid
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from fedpath.client.explain.heatmap import COLOURS, ranks
from fedpath.client.explain.scores import MEAN, Explained
from fedpath.core.files import write_text

BANDS = 5
"""Classes the patches are sorted into, by rank."""


def write_geojson(path: Path, explained: Explained, branch: str = MEAN) -> None:
    """Write a FeatureCollection as QuPath imports it: closed polygons in level-0 pixels, without a crs.

    Every branch is among the measurements; ``branch`` decides the classes. The same input gives the same bytes.

    Raises:
        ConfigError: the model has no such branch.
    """
    rank_N = ranks(explained.attention(branch))
    measured = {"attention": explained.attention(MEAN), "attention rank": rank_N}
    if len(explained.attention_KN) > 1:
        measured |= {f"attention branch {k}": row_N for k, row_N in enumerate(explained.attention_KN, start=1)}
    bands = [_band(number) for number in range(BANDS)]
    edge, features = explained.bag.patch_size_level0, []
    for place, (x, y) in enumerate(explained.bag.coords_N2.tolist()):
        features.append(
            {
                "type": "Feature",
                "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"fedpath:{explained.slide_id}:{x}:{y}")),
                "geometry": {"type": "Polygon", "coordinates": [_square(x, y, edge)]},
                "properties": {
                    "objectType": "detection",
                    "isLocked": True,
                    "classification": bands[min(int(rank_N[place] * BANDS), BANDS - 1)],
                    "measurements": {name: float(values_N[place]) for name, values_N in measured.items()},
                },
            }
        )
    write_text(path, json.dumps({"type": "FeatureCollection", "features": features}, allow_nan=False))


def _square(x: int, y: int, edge: int) -> list[list[int]]:
    return [[x, y], [x + edge, y], [x + edge, y + edge], [x, y + edge], [x, y]]


def _band(number: int) -> dict[str, Any]:
    red, green, blue, _ = mpl.colormaps[COLOURS](number / (BANDS - 1))
    low, high = (round(100 * share) for share in np.array([number, number + 1]) / BANDS)
    return {
        "name": f"attention {low}–{high} %",
        "color": [round(255 * part) for part in (red, green, blue)],
    }
