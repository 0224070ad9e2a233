"""Our own feature files: what is written comes back, and every broken file is named with a remedy."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from fedpath.core.bags import FeatureMeta, read_bag, read_failed, read_meta, write_features
from fedpath.core.errors import DataError

META = FeatureMeta(
    slide_id="slide-1",
    encoder="seeded-conv",
    encoder_sha256="ab" * 32,
    mpp_level0=0.325,
    mpp=0.5,
    patch_px=128,
    patch_size_level0=197,
    level0_width=4000,
    level0_height=3000,
    transform="rgb/255",
    reader="openslide 4.0.1 on white",
    slide_sha256="cd" * 32,
    failed_tiles=2,
    tissue="otsu",
)


def some_features(n: int = 40, width: int = 24) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    coords = np.stack([np.arange(n) % 8, np.arange(n) // 8], axis=1) * 197
    return random.normal(size=(n, width)).astype(np.float32), coords


def test_a_bag_comes_back_as_written(tmp_path: Path) -> None:
    features, coords = some_features()
    write_features(tmp_path / "slide-1.h5", features, coords, META, failed_F2=np.array([[3, 4], [5, 6]]))
    bag = read_bag(tmp_path / "slide-1.h5")
    assert bag.slide_id == "slide-1"
    assert bag.features_ND.dtype == torch.float16
    assert torch.equal(bag.features_ND, torch.from_numpy(features).half())
    assert bag.coords_N2.dtype == torch.int64
    assert bag.coords_N2.tolist() == coords.tolist()
    assert bag.patch_size_level0 == 197
    assert bag.coords_are_level0
    assert len(bag) == 40
    assert read_meta(tmp_path / "slide-1.h5") == META
    assert read_failed(tmp_path / "slide-1.h5").tolist() == [[3, 4], [5, 6]]


def test_the_file_is_laid_out_as_documented(tmp_path: Path) -> None:
    features, coords = some_features()
    write_features(tmp_path / "a.h5", features, coords, META)
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["features"].dtype == np.float16
        assert file["features"].chunks is None
        assert file["features"].id.get_offset() is not None
        assert file["coords"].dtype == np.int64
        assert file.attrs["fedpath_schema_version"] == 1
        assert file.attrs["mpp_level0"] == 0.325
        assert file["coords"].attrs["patch_size_level0"] == 197
        assert file["coords"].attrs["level0_width"] == 4000
        assert file["coords"].attrs["target_magnification"] == 20
        assert file["features"].attrs["encoder"] == "seeded-conv"


def test_a_bag_that_does_not_come_from_a_slide_has_no_resolution(tmp_path: Path) -> None:
    features, coords = some_features()
    meta = replace(META, mpp=None, mpp_level0=None, patch_px=None, level0_width=None, level0_height=None)
    write_features(tmp_path / "a.h5", features, coords, meta)
    assert read_meta(tmp_path / "a.h5") == meta


@pytest.mark.parametrize(
    ("features", "coords", "says"),
    [
        (np.zeros((3, 4)), np.zeros((2, 2), int), "not N×D and N×2"),
        (np.zeros((0, 4)), np.zeros((0, 2), int), "not N×D and N×2"),
        (np.zeros((3, 4)), np.zeros((3, 2)), "coordinates are float64"),
        (np.array([[1.0], [np.nan]]), np.zeros((2, 2), int), "patch 1 are not finite"),
        (np.array([[1.0], [70000.0]]), np.zeros((2, 2), int), "patch 1 are not finite"),
    ],
)
def test_nothing_wrong_is_written(tmp_path: Path, features: np.ndarray, coords: np.ndarray, says: str) -> None:
    with pytest.raises(DataError, match=says):
        write_features(tmp_path / "a.h5", features, coords, META)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_whole(tmp_path: Path) -> None:
    features, coords = some_features()
    write_features(tmp_path / "a.h5", features, coords, META)
    with pytest.raises(DataError):
        write_features(tmp_path / "a.h5", features * np.inf, coords, META)
    assert len(read_bag(tmp_path / "a.h5")) == 40
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path: Path, share: float) -> None:
    features, coords = some_features()
    path = tmp_path / "slide-1.h5"
    write_features(path, features, coords, META)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match=r"slide-1\.h5: truncated or not a feature file") as caught:
        read_bag(path)
    assert "make it again" in caught.value.remedy


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -np.nan])
def test_non_finite_features_are_named(tmp_path: Path, dtype: type, value: float) -> None:
    features, coords = some_features()
    features = features.astype(dtype)
    features[7, 3] = value
    # The largest finite values of either sign must not be mistaken for infinity.
    features[0, :2] = np.finfo(dtype).max, np.finfo(dtype).min
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"], file["coords"] = features, coords
    with pytest.raises(DataError, match=r"a\.h5: the features of patch 7"):
        read_bag(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["features"][7, 3] = 0
    assert len(read_bag(tmp_path / "a.h5")) == 40


def test_a_value_that_is_no_number_is_found_in_whichever_block_it_lies(tmp_path: Path) -> None:
    features, coords = some_features(n=3000, width=1024)  # 6 MB: three blocks
    for row in (0, 1023, 1024, 2047, 2999):
        broken = features.astype(np.float16)
        broken[row:, 1023] = np.nan
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["features"], file["coords"] = broken, coords
        with pytest.raises(DataError, match=rf"the features of patch {row} hold"):
            read_bag(tmp_path / "a.h5")


@pytest.mark.parametrize("stored", [np.float16, np.float32, ">f4"])
@pytest.mark.parametrize("chunks", [None, (7, 24)])
def test_some_rows_are_those_of_the_whole(tmp_path: Path, stored: type | str, chunks: tuple[int, int] | None) -> None:
    features, coords = some_features()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("features", data=features.astype(stored), chunks=chunks)
        file["coords"] = coords
    whole = read_bag(tmp_path / "a.h5")
    rows = [31, 0, 39, 0, 8]
    for wanted in (rows, np.array(rows)):
        some = read_bag(tmp_path / "a.h5", rows=wanted)
        assert some.features_ND.dtype == whole.features_ND.dtype
        assert torch.equal(some.features_ND, whole.features_ND[rows])
        assert torch.equal(some.coords_N2, whole.coords_N2[rows])
        assert some.patch_size_level0 == whole.patch_size_level0


def test_rows_that_are_not_there_and_bad_rows_are_named(tmp_path: Path) -> None:
    features, coords = some_features()
    features[7, 3] = np.nan
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"], file["coords"] = features, coords
    for rows in ([3, 40], [-1, 3]):
        with pytest.raises(DataError, match=r"a\.h5: '/features' has 40 rows, asked for are"):
            read_bag(tmp_path / "a.h5", rows=rows)
    with pytest.raises(DataError, match="the features of patch 7 hold NaN"):
        read_bag(tmp_path / "a.h5", rows=[9, 7])
    assert len(read_bag(tmp_path / "a.h5", rows=[9, 8])) == 2


def test_mismatched_misshapen_and_foreign_files_are_named(tmp_path: Path) -> None:
    features, coords = some_features()
    cases = {
        "rows": ({"features": features, "coords": coords[:-1]}, "40 feature rows but 39 coordinates"),
        "vector": ({"features": features[0], "coords": coords}, "one row a patch"),
        "empty": ({"features": features[:0], "coords": coords[:0]}, "one row a patch"),
        "integers": ({"features": coords, "coords": coords}, "not a float type"),
        "patches": ({"coords": coords}, "coordinates but no features"),
        "featureless": ({"image": coords}, "no 'features' or 'feats' inside, but image"),
        "placeless": ({"features": features}, "no 'coords'"),
        "wide": ({"features": features, "coords": np.zeros((40, 3), int)}, "not N×2"),
    }
    for name, (datasets, says) in cases.items():
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            for key, value in datasets.items():
                file[key] = value
        with pytest.raises(DataError, match=rf"{name}\.h5: .*{says}"):
            read_bag(tmp_path / f"{name}.h5")
    with pytest.raises(DataError, match="no such feature file"):
        read_bag(tmp_path / "absent.h5")


def test_a_later_schema_is_refused_and_foreign_files_have_no_meta(tmp_path: Path) -> None:
    features, coords = some_features()
    path = tmp_path / "a.h5"
    write_features(path, features, coords, META)
    with h5py.File(path, "a") as file:
        file.attrs["fedpath_schema_version"] = 99
    with pytest.raises(DataError, match="schema version 99 is newer"):
        read_bag(path)
    with h5py.File(path, "a") as file:
        del file.attrs["fedpath_schema_version"]
    with pytest.raises(DataError, match="not a fedpath feature file"):
        read_meta(path)
