"""The registry, and an encoder whose weights are the same everywhere."""

import numpy as np
import pytest
import torch

from fedpath.client.slides.encoders import Encoder, available, describe
from fedpath.core.errors import ConfigError


def patches(n: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 128, 128, 3), np.uint8)


def test_the_weights_are_these() -> None:
    # A federation compares this hash; if it changes, every feature file made so far is worthless beside new ones.
    info = describe("seeded-conv")
    assert info.sha256 == "7ba64da6c6f145705de7c87f282b4da99ac1eaecbb8d2677b8c9c6ea8997f255"
    assert info.width == 128
    assert info.transform == "rgb/127.5-1"
    assert info in available()


def test_building_it_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    Encoder("seeded-conv")
    assert torch.equal(torch.rand(4), expected)


def test_features_are_finite_half_precision_and_repeatable() -> None:
    encoder = Encoder("seeded-conv")
    features = encoder.encode(patches())
    assert features.shape == (5, 128)
    assert features.dtype == np.float16
    assert np.isfinite(features).all()
    assert np.array_equal(features, Encoder("seeded-conv").encode(patches()))
    assert np.isfinite(encoder.encode(np.zeros((1, 16, 16, 3), np.uint8))).all()


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="encoder 'seeded_conv' is unknown") as caught:
        describe("seeded_conv")
    assert "did you mean 'seeded-conv'?" in caught.value.remedy
    with pytest.raises(ConfigError) as caught:
        Encoder("zzz")
    assert "available: seeded-conv" in caught.value.remedy
