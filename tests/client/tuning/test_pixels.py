"""Pixels of chosen patches: what decides them, and what stands in the way of reading them."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from slide_files import small_slide

from fedpath.client.slides.encode import encode_folder
from fedpath.client.slides.reader import Slide
from fedpath.client.slides.settings import EncodeSettings
from fedpath.client.tuning.choose import with_patches
from fedpath.client.tuning.pixels import Source, read_patches
from fedpath.core.bags import read_bag, read_meta
from fedpath.core.cohort.examples import Example
from fedpath.core.errors import DataError


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide without a resolution of its own, encoded with one that was stated."""
    folder = tmp_path_factory.mktemp("encoded")
    small_slide(folder / "slides" / "one.tif", None)
    encode_folder(folder / "slides", folder / "features", EncodeSettings(0.6, 64, 0.45), encoder="seeded-conv")
    return folder


def example_of(folder: Path, rows: list[int]) -> Example:
    bag = read_bag(folder / "features" / "one.h5")
    return with_patches(Example(bag, 0, "patient", "one"), torch.tensor(rows))


def source_of(folder: Path, slide_mpp: float | None = None) -> Source:
    return Source(folder / "slides" / "one.tif", read_meta(folder / "features" / "one.h5"), slide_mpp)


def test_pixels_are_those_that_were_encoded_mapped_from_a_file(encoded: Path, tmp_path: Path) -> None:
    chosen, told = example_of(encoded, [3, 9, 40]), []
    for _ in range(2):
        read = read_patches(tmp_path, [chosen], {"one": source_of(encoded)}, lambda *at: told.append(at))
    (example,) = read.examples
    assert example.bag.pixels_NHWC is not None
    # The resolution that was stated when it was encoded holds; site.toml need not repeat it.
    with Slide(encoded / "slides" / "one.tif", slide_mpp=0.45) as slide:
        expected = [slide.read(x, y, mpp=0.6, size=64) for x, y in chosen.bag.coords_N2.tolist()]
    assert np.array_equal(example.bag.pixels_NHWC.numpy(), np.stack(expected))
    assert torch.equal(example.bag.coords_N2, chosen.bag.coords_N2)
    (file,) = tmp_path.glob("one/*.npy")
    assert told == [(1, 1, file.stat().st_size)] * 2
    # Whoever writes to the tensor does not write to the file.
    before = file.read_bytes()
    example.bag.pixels_NHWC.zero_()
    assert file.read_bytes() == before


def test_another_resolution_in_site_toml_than_it_was_encoded_with(encoded: Path, tmp_path: Path) -> None:
    chosen = example_of(encoded, [0])
    read_patches(tmp_path / "same", [chosen], {"one": source_of(encoded, 0.45)})
    with pytest.raises(DataError, match=r"slide 'one' was encoded with 0\.45 µm/px at level 0, now it has 0\.5") as e:
        read_patches(tmp_path, [chosen], {"one": source_of(encoded, 0.5)})
    assert "slides.mpp in site.toml" in e.value.remedy


def test_a_disk_that_is_too_small_is_said_before_anything_is_read(
    encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = SimpleNamespace(free=3 * 64 * 64 * 3 - 1)
    monkeypatch.setattr("fedpath.client.tuning.pixels.disk_usage", lambda _: free)
    chosen, source = example_of(encoded, [0, 1, 2]), {"one": source_of(encoded)}
    with pytest.raises(DataError, match=r"need 0\.0 GB, the disk has 0\.0 GB") as caught:
        read_patches(tmp_path, [chosen], source)
    assert "larger disk" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []
    free.free += 1
    read_patches(tmp_path, [chosen], source)
    free.free = 0
    read_patches(tmp_path, [chosen], source)  # what is there needs no room
