"""What a hospital states about its features: from the files where they say it, from site.toml where they do not."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from federation import WIDTH, write_bag

from fedpath.client.agent.contract import contract_of
from fedpath.core.config.site import FeaturesSection
from fedpath.core.errors import DataError
from fedpath.core.exchange.contract import FeatureContract

STATED = FeaturesSection(encoder="uni_v1", mpp=0.5, patch_px=256)


def clam_file(path: Path) -> Path:
    """A bag as CLAM leaves it: nothing says how it was made."""
    with h5py.File(path, "w") as file:
        file["features"] = np.zeros((3, WIDTH), np.float32)
        file["coords"] = np.array([[0, 0], [512, 0], [1024, 0]], np.int32)
    return path


def own_file(path: Path, encoder: str = "noise") -> Path:
    write_bag(path, path.stem, np.zeros((3, WIDTH)), encoder)
    return path


def test_another_tools_files_are_spoken_for_by_the_hospital(tmp_path: Path) -> None:
    paths = [clam_file(tmp_path / "a.h5"), clam_file(tmp_path / "b.h5")]
    assert contract_of(paths, STATED) == FeatureContract(
        encoder="uni_v1", encoder_sha256="unstated", width=WIDTH, mpp=0.5, patch_px=256, transform="unstated"
    )
    with pytest.raises(DataError, match=r"a\.h5: does not say how it was made") as caught:
        contract_of(paths, None)
    assert "[features] of site.toml" in caught.value.remedy


def test_our_files_speak_for_themselves(tmp_path: Path) -> None:
    contract = contract_of([own_file(tmp_path / "a.h5")], STATED)
    assert (contract.encoder, contract.patch_px) == ("noise", 128)


def test_files_that_disagree_are_named(tmp_path: Path) -> None:
    paths = [own_file(tmp_path / "a.h5"), clam_file(tmp_path / "b.h5")]
    with pytest.raises(DataError, match=r"b\.h5: made with another encoder, .*patch_px.* than a\.h5"):
        contract_of(paths, STATED)
