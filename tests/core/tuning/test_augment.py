"""Augmentation against its definition, pixel by pixel."""

import math

import numpy as np
import pytest
import torch

from fedpath.core.tuning.augment import BRIGHTNESS, CONTRAST, CROP_AREA, Changes, augment, draw_changes

SIZE = 9


def mirrored(place: float, size: int) -> float:
    """Reflect a pixel coordinate (0 the first pixel's centre) at the borders -½ and size - ½."""
    place = (place + 0.5) % (2 * size)
    return min(max((place if place < size else 2 * size - place) - 0.5, 0), size - 1)


def literal(rgb_CHW: np.ndarray, affine_23: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    _, height, width = rgb_CHW.shape
    out = np.zeros(rgb_CHW.shape)
    for row in range(height):
        for column in range(width):
            x, y = affine_23 @ [(2 * column + 1) / width - 1, (2 * row + 1) / height - 1, 1]
            u, v = mirrored(((x + 1) * width - 1) / 2, width), mirrored(((y + 1) * height - 1) / 2, height)
            left, top = math.floor(u), math.floor(v)
            right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
            a, b = u - left, v - top
            out[:, row, column] = (1 - b) * ((1 - a) * rgb_CHW[:, top, left] + a * rgb_CHW[:, top, right]) + b * (
                (1 - a) * rgb_CHW[:, bottom, left] + a * rgb_CHW[:, bottom, right]
            )
    out = np.clip(brightness * out, 0, 1)
    grey = np.tensordot([0.299, 0.587, 0.114], out, axes=1).mean()
    return np.clip(contrast * (out - grey) + grey, 0, 1)


def test_equals_the_definition() -> None:
    torch.manual_seed(0)
    rgb_MCHW, changes = torch.rand(6, 3, SIZE, SIZE), draw_changes(6)
    found = augment(rgb_MCHW.clone(), changes)
    for index in range(6):
        wanted = literal(
            rgb_MCHW[index].double().numpy(),
            changes.affine_N23[index].double().numpy(),
            float(changes.brightness_N[index]),
            float(changes.contrast_N[index]),
        )
        torch.testing.assert_close(found[index].double(), torch.from_numpy(wanted), rtol=0, atol=2e-6)


def test_no_change_is_none_and_a_quarter_turn_is_one() -> None:
    rgb_MCHW, one = torch.rand(1, 3, SIZE, SIZE), torch.ones(1)
    same = augment(rgb_MCHW, Changes(torch.tensor([[[1.0, 0, 0], [0, 1, 0]]]), one, one))
    torch.testing.assert_close(same, rgb_MCHW)
    turned = augment(rgb_MCHW, Changes(torch.tensor([[[0.0, -1, 0], [1, 0, 0]]]), one, one))
    torch.testing.assert_close(turned, torch.rot90(rgb_MCHW, 1, dims=(2, 3)))


def test_the_draw_is_within_its_bounds_and_even() -> None:
    torch.manual_seed(0)
    changes = draw_changes(4000)
    for values, (low, high) in ((changes.brightness_N, BRIGHTNESS), (changes.contrast_N, CONTRAST)):
        assert low <= values.min() < low + 0.01
        assert high - 0.01 < values.max() <= high
    linear_N22 = changes.affine_N23[:, :, :2]
    area_N = torch.linalg.det(linear_N22)
    assert CROP_AREA[0] - 1e-5 <= area_N.abs().min() < 0.71
    assert 0.99 < area_N.abs().max() <= CROP_AREA[1] + 1e-5
    assert 0.45 < (area_N < 0).float().mean() < 0.55  # mirrored
    # Turned by any angle: the first axis points everywhere.
    angle_N = torch.atan2(linear_N22[:, 1, 0], linear_N22[:, 0, 0])
    counts = torch.histc(angle_N, 8, -torch.pi, torch.pi)
    assert counts.min() > 400
    # The unturned square lies inside the patch.
    reach_N2 = changes.affine_N23[:, :, 2].abs() + area_N.abs().sqrt()[:, None]
    assert reach_N2.max() <= 1 + 1e-5
    assert (reach_N2.max(dim=0).values > 0.99).all()


@pytest.mark.parametrize("bfloat16", [False, True])
def test_each_patch_is_changed_alike_in_any_company_and_in_float32(bfloat16: bool) -> None:
    torch.manual_seed(0)
    rgb_MCHW, changes = torch.rand(5, 3, 37, 37), draw_changes(5)
    together = augment(rgb_MCHW.clone(), changes)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        for index in range(5):
            rows = slice(index, index + 1)
            alone = augment(rgb_MCHW[rows].clone(), changes.of(rows, torch.device("cpu")))
            assert torch.equal(alone, together[rows])
