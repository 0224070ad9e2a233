"""Feature files: one HDF5 file a slide, `<slide_id>.h5`.

`features` is contiguous float16 (a full read is one copy; compression would save 15 % and cost 17× the time), `coords`
is int64, level-0 pixels of the patch's top-left corner, with TRIDENT's attribute names on it, so that its readers work.
Root attributes say how the file was made; `failed_coords` lists patches that could not be read from the slide.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from fedpath.core.bags.bag import Bag
from fedpath.core.bags.hdf5 import REMAKE, first_non_finite_row, opened, read_checked, read_matrix, read_rows
from fedpath.core.bags.layouts import features_dataset, read_grid, slide_id
from fedpath.core.errors import DataError
from fedpath.core.files import replacing

SCHEMA_VERSION = 1
_SCHEMA_KEY = "fedpath_schema_version"


@dataclass(frozen=True, slots=True)
class FeatureMeta:
    """How a feature file was made. Lengths in pixels; None where a bag does not come from a slide."""

    slide_id: str
    encoder: str
    encoder_sha256: str
    """SHA-256 of the encoder's weights."""
    mpp_level0: float | None
    """µm/px of the slide's level 0."""
    mpp: float | None
    """µm/px of the patches as encoded."""
    patch_px: int | None
    """Edge of a patch at `mpp`."""
    patch_size_level0: int
    """Edge of a patch in level-0 pixels, rounded."""
    level0_width: int | None
    level0_height: int | None
    transform: str
    """What happens to a patch's pixels before the encoder."""
    reader: str
    """What read the slide, with version and background colour."""
    slide_sha256: str
    """SHA-256 of the slide file."""
    failed_tiles: int
    """Patches in tissue that could not be read and are therefore absent."""
    tissue: str = ""
    """How tissue was found."""


def write_features(
    path: Path,
    features_ND: NDArray[Any],
    coords_N2: NDArray[Any],
    meta: FeatureMeta,
    *,
    failed_F2: NDArray[Any] | None = None,
) -> None:
    """Write a feature file, whole or not at all.

    Args:
        path: `<slide_id>.h5`.
        features_ND: any float type; stored as float16.
        coords_N2: integers, level-0 pixels of each patch's top-left corner.
        meta: how they were made.
        failed_F2: corners of the patches that could not be read.

    Raises:
        DataError: shapes do not match, the bag is empty, or a value is not finite in float16.
    """
    features_ND, coords_N2 = np.asarray(features_ND), np.asarray(coords_N2)
    if features_ND.ndim != 2 or 0 in features_ND.shape or coords_N2.shape != (len(features_ND), 2):
        raise DataError(
            f"{path}: features {features_ND.shape} and coordinates {coords_N2.shape} are not N×D and N×2",
            remedy="give one coordinate a feature row, and at least one row",
        )
    if coords_N2.dtype.kind not in "iu":
        raise DataError(f"{path}: coordinates are {coords_N2.dtype}", remedy="give whole level-0 pixels")
    if meta.patch_size_level0 < 1:
        raise DataError(f"{path}: patch_size_level0 is {meta.patch_size_level0}", remedy="give at least 1 pixel")
    with np.errstate(over="ignore"):
        stored_ND = np.ascontiguousarray(features_ND, dtype=np.float16)
    row = first_non_finite_row(stored_ND)
    if row is not None:
        raise DataError(
            f"{path}: the features of patch {row} are not finite in float16 (largest magnitude 65504)",
            remedy="check the encoder's output, or rescale the features",
        )
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs[_SCHEMA_KEY] = SCHEMA_VERSION
        for field in fields(meta):
            value = getattr(meta, field.name)
            if value is not None:
                file.attrs[field.name] = value
        features = file.create_dataset("features", data=stored_ND)
        features.attrs.update(encoder=meta.encoder, name=meta.slide_id)
        coords = file.create_dataset("coords", data=coords_N2.astype(np.int64))
        coords.attrs.update(_trident_attributes(meta))
        if failed_F2 is not None and len(failed_F2):
            file.create_dataset("failed_coords", data=np.asarray(failed_F2, dtype=np.int64))


def read_bag(
    path: Path, *, mpp_level0: float | None = None, rows: Sequence[int] | NDArray[np.int64] | None = None
) -> Bag:
    """Read a bag from our own, CLAM's, TRIDENT's or STAMP's feature file, recognised by content.

    Args:
        path: the file.
        mpp_level0: µm/px of the slide's level 0; only used for STAMP's files, whose coordinates are in micrometres.
        rows: the patches wanted, by their place in the file; by default all. At least one.

    Raises:
        DataError: truncated, corrupt, non-finite or mismatched; names the file and the remedy.
    """
    with opened(path) as file:
        stated = file.attrs
        _check_schema(path, stated)
        dataset = features_dataset(path, file)
        if dataset.dtype.kind != "f":
            raise DataError(f"{path}: '{dataset.name}' is {dataset.dtype}, not a float type", remedy=REMAKE)
        if rows is None:
            features_ND, row = read_checked(path, dataset)
        else:
            rows_R = np.asarray(rows, dtype=np.int64)
            features_ND = read_rows(path, dataset, rows_R).astype(dataset.dtype.newbyteorder("="), copy=False)
            row = first_non_finite_row(features_ND)
        grid = read_grid(path, file, stated, mpp_level0)
        name = slide_id(path, file, stated)
        patches = len(dataset)
    if len(grid.coords_N2) != patches:
        raise DataError(f"{path}: {patches} feature rows but {len(grid.coords_N2)} coordinates", remedy=REMAKE)
    coords_N2 = grid.coords_N2 if rows is None else grid.coords_N2[rows_R]
    if row is not None:
        raise DataError(f"{path}: the features of patch {_place(rows, row)} hold NaN or infinity", remedy=REMAKE)
    return Bag(
        slide_id=name,
        features_ND=torch.from_numpy(features_ND),
        coords_N2=torch.from_numpy(coords_N2),
        patch_size_level0=grid.patch_size_level0,
        coords_are_level0=grid.is_level0,
    )


def _place(rows: Sequence[int] | NDArray[np.int64] | None, row: int) -> int:
    """Return the place in the file of row ``row`` of what was read."""
    return row if rows is None else int(rows[row])


def is_own(path: Path) -> bool:
    """Return whether a feature file was written by fedpath, and so says how it was made.

    Raises:
        DataError: truncated or missing.
    """
    with opened(path) as file:
        return _SCHEMA_KEY in file.attrs


def read_meta(path: Path) -> FeatureMeta:
    """Read how one of our own feature files was made, without its features.

    Raises:
        DataError: truncated, or made by another tool.
    """
    with opened(path) as file:
        stated = file.attrs
        if _SCHEMA_KEY not in stated:
            raise DataError(
                f"{path}: does not say how it was made (not a fedpath feature file)",
                remedy="encode the slide with 'fedpath slides encode'",
            )
        _check_schema(path, stated)
        values: dict[str, Any] = {}
        for field in fields(FeatureMeta):
            value = stated.get(field.name)
            # h5py returns numpy scalars; plain Python numbers travel into JSON.
            values[field.name] = value.item() if isinstance(value, np.generic) else value
    missing = [name for name in ("slide_id", "encoder", "encoder_sha256", "patch_size_level0") if values[name] is None]
    if missing:
        raise DataError(f"{path}: attribute '{missing[0]}' is missing", remedy=REMAKE)
    return FeatureMeta(**values)


def read_failed(path: Path) -> NDArray[np.int64]:
    """Return the corners (F×2, level-0 pixels) of the patches that could not be read from the slide; F may be 0.

    Raises:
        DataError: truncated or not a feature file.
    """
    with opened(path) as file:
        if "failed_coords" not in file:
            return np.empty((0, 2), np.int64)
        return read_matrix(path, file["failed_coords"], np.dtype(np.int64))


def _check_schema(path: Path, stated: Mapping[str, Any]) -> None:
    """Refuse files of a later fedpath instead of misreading them."""
    version = int(stated.get(_SCHEMA_KEY, SCHEMA_VERSION))
    if version > SCHEMA_VERSION:
        raise DataError(f"{path}: schema version {version} is newer than {SCHEMA_VERSION}", remedy="update fedpath")


def _trident_attributes(meta: FeatureMeta) -> dict[str, Any]:
    """Return the attributes TRIDENT puts on coordinates; magnification is nominal, 10× at 1 µm/px."""
    values = {
        "patch_size": meta.patch_px,
        "patch_size_level0": meta.patch_size_level0,
        "level0_magnification": 10 / meta.mpp_level0 if meta.mpp_level0 else None,
        "target_magnification": 10 / meta.mpp if meta.mpp else None,
        "overlap": 0,
        "level0_width": meta.level0_width,
        "level0_height": meta.level0_height,
        "name": meta.slide_id,
    }
    return {key: value for key, value in values.items() if value is not None}
