"""Random changes of patches in training: brightness, contrast, rotation, crop and flips, new ones each time.

Tissue has no upright and no left, and two scanners no common brightness. Rotation, crop and flips are one affine map,
so a patch is resampled once. All numbers are drawn up front, for all patches of a slide: how many patches pass through
the encoder at a time, and which are computed twice, changes nothing of what is drawn.

    out(p) = c · (b · in(T p) - mean) + mean          T p = e R F p + t, p in [-1, 1]², (0, 0) the patch's centre

with brightness b and contrast c in 0.8…1.2, rotation R by any angle, flips F, and t that leaves the crop's unturned
square inside the patch; its corners, once turned, are mirrored at the border. e² is in 0.7…1: a crop is meant by its
share of the area. mean is that of the patch's grey values; colours are cut off at 0 and 1 after b and after c.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

BRIGHTNESS = CONTRAST = (0.8, 1.2)
CROP_AREA = (0.7, 1.0)
GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What happens to each of N patches."""

    affine_N23: Tensor
    """T: where in the patch, in [-1, 1]², an output pixel is taken from."""
    brightness_N: Tensor
    contrast_N: Tensor

    def of(self, rows: slice, device: torch.device) -> "Changes":
        """Return those of some of the patches, on ``device``."""
        return Changes(
            self.affine_N23[rows].to(device), self.brightness_N[rows].to(device), self.contrast_N[rows].to(device)
        )


def draw_changes(n_patches: int) -> Changes:
    """Draw changes (float32, CPU) of ``n_patches`` patches from torch's global generator: 8 numbers a patch."""
    drawn_N8 = torch.rand(n_patches, 8)
    brightness_N, contrast_N, area_N, turn_N, right_N, down_N, mirror_N, upset_N = drawn_N8.unbind(1)
    edge_N = _between(CROP_AREA, area_N).sqrt()
    angle_N = _between((-torch.pi, torch.pi), turn_N)
    cos_N, sin_N = edge_N * angle_N.cos(), edge_N * angle_N.sin()
    flip_x_N, flip_y_N = (1.0 - 2.0 * (number_N < 0.5).float() for number_N in (mirror_N, upset_N))
    margin_N = 1 - edge_N
    affine_N6 = torch.stack(
        [
            cos_N * flip_x_N,
            -sin_N * flip_y_N,
            margin_N * _between((-1, 1), right_N),
            sin_N * flip_x_N,
            cos_N * flip_y_N,
            margin_N * _between((-1, 1), down_N),
        ],
        dim=1,
    )
    return Changes(affine_N6.reshape(-1, 2, 3), _between(BRIGHTNESS, brightness_N), _between(CONTRAST, contrast_N))


def augment(rgb_MCHW: Tensor, changes: Changes) -> Tensor:
    """Return changed patches.

    Args:
        rgb_MCHW: square patches, float32 colours in 0…1.
        changes: of these M patches, on their device.
    """
    with torch.autocast(rgb_MCHW.device.type, enabled=False):
        rgb_MCHW = functional.grid_sample(
            rgb_MCHW, _grid(changes.affine_N23, *rgb_MCHW.shape[2:]), padding_mode="reflection", align_corners=False
        )
        rgb_MCHW.mul_(changes.brightness_N[:, None, None, None]).clamp_(0, 1)
        grey = torch.tensor(GREY, device=rgb_MCHW.device)
        # The mean over the pixels first: then no grey patch is made.
        mean_M111 = (rgb_MCHW.mean(dim=(2, 3)) * grey).sum(dim=1)[:, None, None, None]
        contrast_M111 = changes.contrast_N[:, None, None, None]
        return rgb_MCHW.mul_(contrast_M111).add_((1 - contrast_M111) * mean_M111).clamp_(0, 1)


def _grid(affine_M23: Tensor, height: int, width: int) -> Tensor:
    """Return (M, H, W, 2): where each output pixel's centre is taken from, x then y.

    torch's affine_grid is a product of matrices, whose last bit may depend on M.
    """
    device = affine_M23.device
    x_W = (2 * torch.arange(width, device=device) + 1) / width - 1
    y_H1 = ((2 * torch.arange(height, device=device) + 1) / height - 1)[:, None]
    rows = [
        row_M3[:, 0, None, None] * x_W + row_M3[:, 1, None, None] * y_H1 + row_M3[:, 2, None, None]
        for row_M3 in affine_M23.unbind(1)
    ]
    return torch.stack(rows, dim=-1)


def _between(bounds: tuple[float, float], share_N: Tensor) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * share_N
