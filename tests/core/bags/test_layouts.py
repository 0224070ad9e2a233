"""Other tools' feature files, written here exactly as those tools lay them out."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from shared_data import shared_data

from fedpath.core.bags import read_bag
from fedpath.core.bags.layouts import infer_stride
from fedpath.core.errors import DataError

N, D = 60, 32


def grid(step: int, origin: tuple[int, int] = (0, 0)) -> np.ndarray:
    return np.stack([np.arange(N) % 10, np.arange(N) // 10], axis=1) * step + origin


@pytest.fixture
def features() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(N, D)).astype(np.float32)


def test_clam(tmp_path: Path, features: np.ndarray) -> None:
    # Two contours, each with its own grid: an odd distance between them must not be taken for the patch size.
    coords = np.concatenate([grid(512)[:30], grid(512, (4613 + 512 * 10, 512))[:30]]).astype(np.int32)
    with h5py.File(tmp_path / "case_1.h5", "w") as file:
        file.create_dataset("features", data=features, chunks=(32, D), maxshape=(None, D))
        file.create_dataset("coords", data=coords, chunks=(1, 2), maxshape=(None, 2))
    bag = read_bag(tmp_path / "case_1.h5")
    assert bag.slide_id == "case_1"
    assert bag.features_ND.dtype == torch.float32
    assert torch.equal(bag.features_ND, torch.from_numpy(features))
    assert bag.coords_N2.dtype == torch.int64
    assert bag.coords_N2.tolist() == coords.tolist()
    assert bag.patch_size_level0 == 512


def test_trident(tmp_path: Path, features: np.ndarray) -> None:
    coords = grid(1024)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        held = file.create_dataset("features", data=features, chunks=(1, D))
        held.attrs["encoder"], held.attrs["name"] = "uni_v1", "TCGA-1"
        place = file.create_dataset("coords", data=coords)
        # A 40x slide cut at 20x without overlap: neighbours are patch_size_level0 apart, twice patch_size.
        place.attrs.update(patch_size=512, patch_size_level0=1024, level0_magnification=40, target_magnification=20)
        place.attrs.update(overlap=0, level0_width=99840, level0_height=61440, name="TCGA-1")
    bag = read_bag(tmp_path / "x.h5")
    assert bag.slide_id == "TCGA-1"
    assert bag.patch_size_level0 == 1024
    assert bag.coords_N2.tolist() == coords.tolist()


def test_stamp(tmp_path: Path, features: np.ndarray) -> None:
    with h5py.File(tmp_path / "slide.h5", "w") as file:
        file["coords"] = (grid(1) * 256.0).astype(np.float32)
        file["feats"] = features.astype(np.float16)
        file.attrs.update(stamp_version="2.3.0", extractor="uni2", unit="um", tile_size_um=256.0, tile_size_px=224)
    bag = read_bag(tmp_path / "slide.h5", mpp_level0=0.25)
    assert bag.coords_N2.tolist() == grid(1024).tolist()
    assert bag.patch_size_level0 == 1024
    assert bag.coords_are_level0
    assert bag.features_ND.dtype == torch.float16
    # Without the slide's µm/px level-0 pixels cannot be known; the bag says so and counts in tile pixels.
    bag = read_bag(tmp_path / "slide.h5")
    assert not bag.coords_are_level0
    assert bag.patch_size_level0 == 224
    assert bag.coords_N2.tolist() == grid(224).tolist()


def test_stamp_without_tile_size_is_refused(tmp_path: Path, features: np.ndarray) -> None:
    with h5py.File(tmp_path / "slide.h5", "w") as file:
        file["coords"], file["feats"] = grid(1) * 256.0, features
        file.attrs["unit"] = "um"
    with pytest.raises(DataError, match="tile_size_um"):
        read_bag(tmp_path / "slide.h5")


def test_a_single_patch_has_an_unknown_size() -> None:
    assert infer_stride(np.array([[512, 512]])) == 0
    assert infer_stride(np.array([[0, 0], [5, 7]])) == 0
    assert infer_stride(np.array([[0, 0], [0, 256], [0, 1280]])) == 256


@pytest.mark.skipif(shared_data() is None, reason="needs the shared data folder")
def test_a_real_bag() -> None:
    folder = shared_data()
    assert folder is not None
    bag = read_bag(folder / "bags" / "TCGA-AD-6964-01Z-00-DX1" / "features.h5")
    assert bag.slide_id == "TCGA-AD-6964-01Z-00-DX1"
    assert bag.features_ND.shape == (777, 512)
    assert bag.features_ND.dtype == torch.float32
    assert bag.patch_size_level0 == 512
    # Tiles saved beside the bag are named by the corner that must be among its coordinates.
    corners = {tuple(corner) for corner in bag.coords_N2.tolist()}
    assert {(16896, 20480), (22016, 11776), (23040, 25088)} <= corners
