"""Encoders of a user's own package."""

from pathlib import Path

import numpy as np
import pytest
import torch
from command import fedpath
from own_package import installed, write_package
from safetensors.torch import save_file

from fedpath.client.slides.encoders import Encoder
from fedpath.core.config.stages import TuningSection
from fedpath.core.encoders import (
    blank_encoder,
    build_encoder,
    encoder_sha256,
    info_of,
    load_encoder,
    save_encoder,
    trainable_names,
)
from fedpath.core.errors import ConfigError, DataError

MINE = """
from torch import nn


class Mine(nn.Sequential):
    patch_px = 32
    licence = "mine alone"

    def __init__(self):
        super().__init__(nn.Conv2d(3, 6, 4, 4), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


def write(folder: Path, source: str = MINE, target: str = "mine:Mine", package: str = "my-package") -> Path:
    return write_package(
        folder, entry="my-encoder", target=target, package=package, source=source, group="fedpath.encoders"
    )


def test_a_module_of_another_package_encodes(tmp_path: Path) -> None:
    write(tmp_path)
    with installed(tmp_path):
        info = info_of("my-encoder")
        assert (info.width, info.patch_px, info.licence, info.needs_weights) == (6, 32, "mine alone", False)
        assert info.transform == "as my-package 1.0 has it"
        encoder = build_encoder("my-encoder")
        rgb = torch.rand(2, 3, 32, 32)
        assert torch.equal(encoder(rgb), encoder.module(rgb))  # type: ignore[operator]
        torch.manual_seed(5)
        assert encoder_sha256(build_encoder("my-encoder")) == encoder_sha256(encoder)
        assert not any("num_batches" in name for name in encoder.state_dict())
        assert blank_encoder("my-encoder")(rgb.to("meta")).shape == (2, 6)
        features = Encoder("my-encoder").encode(np.zeros((3, 32, 32, 3), np.uint8))
        assert features.shape == (3, 6)
        with pytest.raises(ConfigError, match="takes patches of 32 px, not of 64"):
            Encoder("my-encoder").encode(np.zeros((3, 64, 64, 3), np.uint8))


def test_its_weights_are_read_from_a_file_and_tuned_ones_kept(tmp_path: Path) -> None:
    write(tmp_path)
    with installed(tmp_path):
        encoder = build_encoder("my-encoder")
        state = {name.removeprefix("module."): 2 * tensor for name, tensor in encoder.state_dict().items()}
        save_file(state | {"1.num_batches_tracked": torch.tensor(3)}, tmp_path / "mine.safetensors")
        found = build_encoder("my-encoder", tmp_path / "mine.safetensors")
        assert torch.equal(found.state_dict()["module.0.weight"], state["0.weight"])
        assert trainable_names(found, "my-encoder", TuningSection()) == [
            f"module.{n}" for n in ("0.weight", "0.bias", "1.weight", "1.bias")
        ]
        save_encoder(tmp_path / "tuned.safetensors", found, name="my-encoder", base_sha256="0" * 64, tuning=None)
        again, name = load_encoder(tmp_path / "tuned.safetensors")
        assert (name, encoder_sha256(again)) == ("my-encoder", encoder_sha256(found))
        save_file({"0.weight": state["0.weight"]}, tmp_path / "part.safetensors")
        with pytest.raises(DataError, match="not the weights of this architecture"):
            build_encoder("my-encoder", tmp_path / "part.safetensors")


def test_one_without_weights_of_its_own_asks_for_a_file(tmp_path: Path) -> None:
    write(tmp_path, MINE.replace("    licence", "    needs_weights = True\n    licence"))
    with installed(tmp_path), pytest.raises(ConfigError, match="encoder 'my-encoder' comes without weights") as caught:
        build_encoder("my-encoder")
    assert "licence: mine alone" in caught.value.remedy


def test_listing_imports_nothing_and_showing_says_what_is_wrong(tmp_path: Path) -> None:
    write(tmp_path, "raise RuntimeError('imported')")
    with installed(tmp_path):
        run = fedpath("encoders", "list")
        assert run.code == 0, run.err
        assert "mine:Mine of my-package 1.0" in run.out
        run = fedpath("encoders", "show", "my-encoder")
    run.assert_error(
        2, "own encoder 'my-encoder' (mine:Mine of package my-package 1.0): cannot be imported: RuntimeError"
    )


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("Mine = 3", "is no class"),
        ("class Mine:\n    pass", "gives a Mine, no torch.nn.Module"),
        ("def Mine(path): ...", "cannot be built"),
        (MINE.replace(", nn.Flatten()", ""), r"gives \(2, 6, 1, 1\) on 2 patches of 32 px"),
        (MINE.replace("patch_px = 32", "patch_px = 3"), "fails on 2 patches of 3 px"),
        (
            MINE + "    dtype = None\n\ndef Half():\n    return Mine().half()\nMine, M = Half, Mine",
            "is not float32|cannot",
        ),
    ],
)
def test_what_is_no_encoder_is_refused(source: str, words: str, tmp_path: Path) -> None:
    write(tmp_path, source)
    with installed(tmp_path), pytest.raises(ConfigError, match=words) as caught:
        build_encoder("my-encoder")
    assert "my-package 1.0" in caught.value.message
    assert caught.value.remedy


def test_two_packages_of_one_name_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", package="other")
    with installed(tmp_path / "a", tmp_path / "b"), pytest.raises(ConfigError, match="named by two packages"):
        build_encoder("my-encoder")


def test_an_unknown_name_is_answered_with_own_ones_too(tmp_path: Path) -> None:
    write(tmp_path)
    with installed(tmp_path), pytest.raises(ConfigError) as caught:
        build_encoder("my-encodr")
    assert "did you mean 'my-encoder'?" in caught.value.remedy
