"""Areas as QuPath exports and imports them: GeoJSON in level-0 pixels, without a coordinate reference system."""

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fedpath.client.slides.polygons import Polygon, Ring, crosses_itself, trace
from fedpath.client.slides.tissue import Tissue
from fedpath.core.errors import DataError
from fedpath.core.files import write_text

IGNORED = "Ignore*"
"""QuPath's class for what is to be left out."""
_NO_AREA = {"detection", "cell", "tile"}
"""What programs found, not what people outlined."""
_BEYOND_PX, _BEYOND_SHARE = 64, 0.01
"""How far outlines may reach beyond the slide: a brush slips over the border, a wrong unit goes further."""
_COLOUR = [0, 92, 60]


@dataclass(frozen=True, slots=True)
class Areas:
    """What a file outlines, in level-0 pixels."""

    tissue: list[Polygon]
    ignored: list[Polygon]


def read_areas(path: Path, content: bytes, width: int, height: int) -> Areas:
    """Read outlined areas.

    Args:
        path: of the file, for messages.
        content: a Feature, a FeatureCollection, or a list of features.
        width, height: of the slide at level 0.

    Raises:
        DataError: not such a file, no area in it, an area outside the slide, or a ring that crosses itself.
    """
    export = "export it from QuPath again: File > Export objects as GeoJSON"
    try:
        root = json.loads(content)
    except (ValueError, RecursionError):
        raise DataError(f"{path}: not JSON", remedy=export) from None
    if isinstance(root, dict) and root.get("crs") is not None:
        raise DataError(
            f"{path}: has a coordinate reference system (crs); outlines are in pixels of level 0", remedy=export
        )
    areas = Areas([], [])
    try:
        for feature in _features(root):
            properties = feature.get("properties") or {}
            if properties.get("objectType") not in _NO_AREA:
                kind = areas.ignored if _class_of(properties) == IGNORED else areas.tissue
                kind += _polygons(feature.get("geometry") or {})
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError):
        raise DataError(f"{path}: not GeoJSON as QuPath writes it", remedy=export) from None
    if not areas.tissue and not areas.ignored:
        raise DataError(
            f"{path}: outlines no area",
            remedy=f"outline tissue in QuPath, or areas of class {IGNORED} to leave out; or delete the file",
        )
    for polygon in (*areas.tissue, *areas.ignored):
        for ring in polygon:
            _check(path, ring, width, height)
    return areas


def _features(root: Any) -> Iterator[dict[str, Any]]:
    if isinstance(root, list):
        yield from root
    elif root["type"] == "FeatureCollection":
        yield from root["features"]
    elif root["type"] == "Feature":
        yield root
    else:
        yield {"geometry": root}


def _class_of(properties: dict[str, Any]) -> str:
    """Return the name of a feature's class; QuPath has written it in several ways."""
    found = properties.get("classification") or ""
    if isinstance(found, dict):
        found = found.get("name") or (found.get("names") or [""])[0]
    return str(found)


def _polygons(geometry: dict[str, Any]) -> Iterator[Polygon]:
    """Yield the areas of a geometry; points and lines have none.

    Raises:
        ValueError, TypeError, KeyError: it is none.
    """
    kind = geometry.get("type")
    if kind == "Polygon":
        yield [_ring(positions) for positions in geometry["coordinates"]]
    elif kind == "MultiPolygon":
        for polygon in geometry["coordinates"]:
            yield [_ring(positions) for positions in polygon]
    elif kind == "GeometryCollection":
        for inner in geometry["geometries"]:
            yield from _polygons(inner)


def _ring(positions: list[list[float]]) -> Ring:
    ring = np.array([position[:2] for position in positions], np.float64)
    if ring.ndim != 2 or ring.shape[1] != 2 or not np.isfinite(ring).all():
        raise ValueError("a ring is a list of x, y")
    # A ring ends where it began; some programs leave that out.
    ring = ring[:-1] if len(ring) > 1 and (ring[0] == ring[-1]).all() else ring
    if len(ring) < 3:
        raise ValueError("a ring has three corners")
    return ring


def _check(path: Path, ring: Ring, width: int, height: int) -> None:
    beyond = max(_BEYOND_PX, _BEYOND_SHARE * max(width, height))
    if ring.min() < -beyond or (ring.max(axis=0) > (width + beyond, height + beyond)).any():
        (left, top), (right, bottom) = ring.min(axis=0), ring.max(axis=0)
        raise DataError(
            f"{path}: an area from ({left:.0f}, {top:.0f}) to ({right:.0f}, {bottom:.0f}) reaches outside the slide of "
            f"{width}×{height} px",
            remedy="outline this slide, in pixels of level 0 (not µm, not a smaller picture)",
        )
    if crosses_itself(ring):
        x, y = ring[0]
        raise DataError(
            f"{path}: the outline that begins at ({x:.0f}, {y:.0f}) crosses itself",
            remedy="draw it again, or in QuPath: Objects > Annotations > Simplify shape, and export it again",
        )


def write_tissue(path: Path, tissue: Tissue, mpp_level0: float, slide_id: str) -> None:
    """Write where tissue is as GeoJSON that QuPath opens: a feature for each connected piece.

    Args:
        path: to write, whole or not at all.
        tissue: to write; read back by `read_areas`, it fills the same pixels.
        mpp_level0: µm/px of the slide's level 0.
        slide_id: of the slide; ids of the features follow from it.
    """
    _, labels_HW = cv2.connectedComponents(tissue.mask_HW.astype(np.uint8), connectivity=4, ltype=cv2.CV_32S)
    scale = tissue.mpp / mpp_level0
    features = [
        {
            "type": "Feature",
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"fedpath:{slide_id}:{index}")),
            "geometry": {"type": "Polygon", "coordinates": [_closed(ring * scale) for ring in polygon]},
            "properties": {
                "objectType": "annotation",
                "isLocked": False,
                "classification": {"name": "Tissue", "color": _COLOUR},
            },
        }
        for index, polygon in enumerate(trace(tissue.mask_HW, np.asarray(labels_HW, np.int32)))
    ]
    write_text(path, json.dumps({"type": "FeatureCollection", "features": features}) + "\n")


def _closed(ring: Ring) -> list[list[float]]:
    return [[round(float(x), 3), round(float(y), 3)] for x, y in np.concatenate([ring, ring[:1]])]
