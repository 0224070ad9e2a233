"""An encoder at work: the same weights and features everywhere, and features that can be stored."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fedpath.client.slides.encoders import Encoder, describe
from fedpath.core.encoders import PatchEncoder, blank_encoder, build_encoder, encoder_sha256, save_encoder
from fedpath.core.encoders.seeded_conv import KERNELS
from fedpath.core.errors import ConfigError, DataError


def patches(n: int = 5, edge: int = 128) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, edge, edge, 3), np.uint8)


def scaled(path: Path, factor: float) -> Path:
    """Write a seeded-conv whose features are ``factor`` times as large."""
    encoder = build_encoder("seeded-conv")
    encoder.load_state_dict(encoder.state_dict() | {"sd_D": encoder.state_dict()["sd_D"] / factor})
    save_encoder(path, encoder, name="seeded-conv", base_sha256=describe("seeded-conv").sha256, tuning=None)
    return path


def test_the_weights_are_these() -> None:
    # A federation compares this hash; if it changes, every feature file made so far is worthless beside new ones.
    info = describe("seeded-conv")
    assert info.sha256 == "7ba64da6c6f145705de7c87f282b4da99ac1eaecbb8d2677b8c9c6ea8997f255"
    assert info.width == 128
    assert info.transform == "rgb/127.5-1"
    assert Encoder("seeded-conv").info == info


def literal_seeded_conv(patches_BHWC: np.ndarray) -> np.ndarray:
    """Return features as they were computed before encoders had stages."""
    weights = build_encoder("seeded-conv").state_dict()
    hidden = torch.from_numpy(patches_BHWC).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    found = []
    for index, size in enumerate(KERNELS):
        kernel = weights[f"kernels.{index}"]
        hidden = torch.nn.functional.relu(torch.nn.functional.conv2d(hidden, kernel, stride=2, padding=size // 2))
        spread, mean = torch.std_mean(hidden, dim=(2, 3), correction=0)
        found += [mean, spread]
    return ((torch.log(torch.cat(found, dim=1) + 0.01) - weights["mean_D"]) / weights["sd_D"]).half().numpy()


@pytest.mark.parametrize("edge", [16, 97, 128])
def test_seeded_features_are_the_same_bits_as_ever(edge: int) -> None:
    assert np.array_equal(Encoder("seeded-conv").encode(patches(7, edge)), literal_seeded_conv(patches(7, edge)))


def test_building_it_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    for name in ("seeded-conv", "tiny-vit", "tiny-resnet"):
        torch.manual_seed(3)
        Encoder(name)
        assert torch.equal(torch.rand(4), expected)


def test_features_are_finite_half_precision_and_repeatable() -> None:
    encoder = Encoder("seeded-conv")
    features = encoder.encode(patches())
    assert features.shape == (5, 128)
    assert features.dtype == np.float16
    assert np.isfinite(features).all()
    assert np.array_equal(features, Encoder("seeded-conv").encode(patches()))
    assert np.isfinite(encoder.encode(np.zeros((1, 16, 16, 3), np.uint8))).all()


def test_a_patch_has_the_same_features_in_any_batch() -> None:
    encoder, many = Encoder("seeded-conv"), patches(67, 32)
    parts = [encoder.encode(many[:64]), encoder.encode(many[64:])]
    assert np.array_equal(encoder.encode(many), np.concatenate(parts))


def test_an_encoder_that_takes_one_size_refuses_others() -> None:
    encoder = Encoder("tiny-vit")
    assert encoder.encode(patches(2)).shape == (2, 48)
    with pytest.raises(ConfigError, match="takes patches of 128 px, not of 96") as caught:
        encoder.encode(patches(2, 96))
    assert "--patch 128" in caught.value.remedy


def test_features_beyond_float16_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="float16, in which they are stored, ends at 65504"):
        Encoder("seeded-conv", scaled(tmp_path / "large.safetensors", 1e6)).encode(patches())


def test_infinite_features_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gives NaN or infinite features"):
        Encoder("seeded-conv", scaled(tmp_path / "infinite.safetensors", 2e38)).encode(patches())


def test_a_tuned_encoder_has_its_own_hash_and_features(tmp_path: Path) -> None:
    path = scaled(tmp_path / "tuned.safetensors", 2)
    tuned = Encoder("seeded-conv", path)
    assert tuned.info.sha256 != describe("seeded-conv").sha256
    assert tuned.info == describe("seeded-conv", path)
    expected = 2 * Encoder("seeded-conv").encode(patches()).astype(np.float32)
    assert np.allclose(tuned.encode(patches()), expected, atol=0.02)


def test_weights_are_described_anew_when_the_file_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "tuned.safetensors"
    first = describe("seeded-conv", scaled(path, 2))
    os.utime(path, ns=(1, 1))
    assert describe("seeded-conv", path) == first
    # Same length, other content.
    assert describe("seeded-conv", scaled(path, 4)).sha256 != first.sha256
    assert describe("seeded-conv", path).sha256 == encoder_sha256(build_encoder("seeded-conv", path))


def test_the_hash_is_of_names_types_shapes_and_bytes() -> None:
    encoder, digest = build_encoder("seeded-conv"), hashlib.sha256()
    for name in sorted(encoder.state_dict()):
        tensor = encoder.state_dict()[name]
        digest.update(f"{name} torch.float32 {tuple(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
    assert describe("seeded-conv").sha256 == digest.hexdigest()


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="encoder 'seeded_conv' is unknown") as caught:
        describe("seeded_conv")
    assert "did you mean 'seeded-conv'?" in caught.value.remedy
    with pytest.raises(ConfigError) as caught:
        Encoder("zzz")
    assert "available: seeded-conv, resnet50, resnet50-layer4, vit-small-16" in caught.value.remedy


@pytest.mark.parametrize(
    ("device", "words"),
    [("cuda:63", "this machine has no device 'cuda:63'"), ("gpu", "'gpu' is no device"), ("meta", "not on 'meta'")],
)
def test_a_device_that_is_not_there_is_named(device: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Encoder("seeded-conv", device=device)
    assert "cpu" in caught.value.remedy.lower()


def test_bfloat16_is_refused_on_a_cpu() -> None:
    with pytest.raises(ConfigError, match="bfloat16 is for encoding on a GPU"):
        Encoder("seeded-conv", precision="bfloat16")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["tiny-vit", "tiny-resnet", "seeded-conv"])
def test_a_gpu_gives_a_cpus_features_and_bfloat16_nearly(name: str) -> None:
    expected = Encoder(name).encode(patches(9)).astype(np.float32)
    last = f"cuda:{torch.cuda.device_count() - 1}"
    found = Encoder(name, device=last).encode(patches(9))
    assert found.dtype == np.float16
    assert np.abs(found - expected).max() <= 4e-3 * np.abs(expected).max()
    half = Encoder(name, device=last, precision="bfloat16")
    assert half.info.transform.endswith("; bfloat16")
    difference = half.encode(patches(9)).astype(np.float32) - expected
    assert np.linalg.norm(difference) < 0.05 * np.linalg.norm(expected)


def test_feature_files_bear_the_first_of_an_encoders_names(tmp_path: Path) -> None:
    encoder = build_encoder_of_noise("lunit-vits8")
    torch.save(encoder.state_dict(), tmp_path / "lunit.pth")
    assert describe("lunit-vits8", tmp_path / "lunit.pth").sha256 == encoder_sha256(encoder)
    assert describe("resnet50-layer3", noise_file("resnet50", tmp_path)).name == "resnet50"


def build_encoder_of_noise(name: str) -> PatchEncoder:
    encoder = blank_encoder(name)
    generator = torch.Generator().manual_seed(0)
    state = {key: torch.rand(like.shape, generator=generator) * 0.02 for key, like in encoder.state_dict().items()}
    encoder.load_state_dict(state, assign=True)
    return encoder


def noise_file(name: str, folder: Path) -> Path:
    torch.save(build_encoder_of_noise(name).state_dict(), folder / "noise.pth")
    return folder / "noise.pth"
