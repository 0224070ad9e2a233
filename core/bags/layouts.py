"""The layouts in which other tools leave patch features, told apart by content.

| layout | features | coordinates | patch size at level 0 |
|---|---|---|---|
| fedpath, TRIDENT | `features` | `coords`, level-0 px | attribute `patch_size_level0` of `coords` |
| CLAM | `features` | `coords`, level-0 px | inferred from the grid |
| STAMP 2 | `feats` | `coords`, micrometres (root attribute `unit`) | `tile_size_um` |
| STAMP 1, MoPaDi | `feats` | `coords`, level-0 px | inferred from the grid |
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from fedpath.core.bags.hdf5 import REMAKE, read_matrix
from fedpath.core.errors import DataError


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the patches of a file lie."""

    coords_N2: NDArray[np.int64]
    patch_size_level0: int
    """0 when unknown."""
    is_level0: bool
    """False: pixels at the patches' own resolution, because the slide's µm/px is unknown."""


def features_dataset(path: Path, file: h5py.File) -> h5py.Dataset:
    """Return the dataset with the features, whatever the tool calls it.

    Raises:
        DataError: there is none; the message says what the file looks like instead.
    """
    for name in ("features", "feats"):
        found = file.get(name)
        if found is not None:
            return found
    if "coords" in file:
        raise DataError(
            f"{path}: has patch coordinates but no features",
            remedy="this is a patches file; name the folder with features (h5_files/ in CLAM, features_*/ in TRIDENT)",
        )
    inside = ", ".join(sorted(file)) or "nothing"
    raise DataError(
        f"{path}: no 'features' or 'feats' inside, but {inside}", remedy="check that this is a feature file"
    )


def read_grid(path: Path, file: h5py.File, stated: Mapping[str, Any], mpp_level0: float | None) -> Grid:
    """Read the coordinates as level-0 pixels.

    Args:
        path: the file, for messages.
        file: the open file.
        stated: its attributes; looked up once, since HDF5 takes its time for each look.
        mpp_level0: µm/px of the slide's level 0, needed only for files that give micrometres.

    Raises:
        DataError: coordinates are missing or misshapen.
    """
    coords = file.get("coords")
    if coords is None:
        raise DataError(f"{path}: no 'coords' inside", remedy="use a file with one patch coordinate a feature row")
    raw_N2 = read_matrix(path, coords)
    whole = raw_N2.dtype.kind in "iu"
    if raw_N2.shape[1] != 2 or not (whole or (raw_N2.dtype.kind == "f" and np.isfinite(raw_N2).all())):
        raise DataError(f"{path}: 'coords' is not N×2 finite numbers", remedy=REMAKE)
    if _text(stated, "unit") == "um":
        return _from_micrometres(path, stated, raw_N2, mpp_level0)
    coords_N2 = (raw_N2 if whole else np.rint(raw_N2)).astype(np.int64, copy=False)
    edge = coords.attrs.get("patch_size_level0")
    return Grid(coords_N2, int(edge) if edge is not None else infer_stride(coords_N2), is_level0=True)


def slide_id(path: Path, file: h5py.File, stated: Mapping[str, Any]) -> str:
    """Return the slide's name: stated in the file, else the file's; for `<slide>/features.h5` the folder's."""
    name = _name(stated) or _name(file["coords"].attrs)
    if name is not None:
        return name
    return path.parent.name if path.stem == "features" else path.stem


def infer_stride(coords_N2: NDArray[np.int64]) -> int:
    """Return the commonest distance between neighbours in a row or column of the grid; 0 if no two patches share one.

    The commonest and not the smallest: CLAM starts a grid at every tissue contour, so patches of different contours may
    lie any distance apart.
    """
    steps = [_steps(coords_N2, along, across) for along, across in ((0, 1), (1, 0))]
    distances, counts = np.unique(np.concatenate(steps), return_counts=True)
    return int(distances[counts.argmax()]) if len(distances) else 0


def _steps(coords_N2: NDArray[np.int64], along: int, across: int) -> NDArray[np.int64]:
    """Return the positive distances between consecutive patches that share the ``across`` coordinate."""
    ordered_N2 = coords_N2[np.lexsort((coords_N2[:, along], coords_N2[:, across]))]
    same_line = ordered_N2[1:, across] == ordered_N2[:-1, across]
    steps: NDArray[np.int64] = np.diff(ordered_N2[:, along])[same_line]
    return steps[steps > 0]


def _from_micrometres(
    path: Path, attributes: Mapping[str, Any], micrometres_N2: NDArray[Any], mpp_level0: float | None
) -> Grid:
    """STAMP: micrometres, turned into level-0 pixels or, if the slide's µm/px is unknown, into tile pixels."""
    size_um, size_px = (float(attributes.get(key, 0)) for key in ("tile_size_um", "tile_size_px"))
    if size_um <= 0 or (mpp_level0 is None and size_px <= 0):
        raise DataError(f"{path}: 'tile_size_um' or 'tile_size_px' is missing", remedy=REMAKE)
    mpp = mpp_level0 if mpp_level0 is not None else size_um / size_px
    coords_N2 = np.rint(micrometres_N2.astype(np.float64) / mpp).astype(np.int64)
    return Grid(coords_N2, round(size_um / mpp), is_level0=mpp_level0 is not None)


def _name(attributes: Mapping[str, Any]) -> str | None:
    return _text(attributes, "slide_id") or _text(attributes, "name")


def _text(attributes: Mapping[str, Any], key: str) -> str | None:
    """Return a string attribute; h5py gives bytes for fixed-length ones."""
    value = attributes.get(key)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else None
