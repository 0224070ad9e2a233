"""`resnet50` in torch alone, with the names of torchvision's state dict, without its classifier.

He et al., Deep residual learning, CVPR 2016, with the stride of a bottleneck in its 3×3 convolution, as torchvision has
it. Features are the mean over the patch of the last stage's channels; a network may end with its third stage, as the
one that CLAM's 1024 features come from does.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpath.core.encoders.base import Hidden, PatchEncoder
from fedpath.core.encoders.colours import IMAGENET

EXPANSION = 4
"""Channels that leave a bottleneck to those inside."""


class StoredBatchNorm(nn.Module):
    """Batch norm by stored statistics, which nothing changes: a patch's features depend on no other patch.

    It lacks the counter of batches (`num_batches_tracked`) of torch's own: evaluation does not read it, and a hash of
    the weights must not depend on it.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        """Return channels moved and scaled."""
        return functional.batch_norm(hidden_BCHW, self.running_mean, self.running_var, self.weight, self.bias)


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions beside a shortcut."""

    def __init__(self, before: int, inside: int, stride: int) -> None:
        super().__init__()
        after = inside * EXPANSION
        self.conv1 = _conv(before, inside, 1)
        self.bn1 = StoredBatchNorm(inside)
        self.conv2 = _conv(inside, inside, 3, stride)
        self.bn2 = StoredBatchNorm(inside)
        self.conv3 = _conv(inside, after, 1)
        self.bn3 = StoredBatchNorm(after)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(_conv(before, after, 1, stride), StoredBatchNorm(after))

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        """Return (B, 4 · inside, H / stride, W / stride)."""
        inner = functional.relu(self.bn1(self.conv1(hidden_BCHW)), inplace=True)
        inner = functional.relu(self.bn2(self.conv2(inner)), inplace=True)
        inner = self.bn3(self.conv3(inner))
        shortcut = hidden_BCHW if self.downsample is None else self.downsample(hidden_BCHW)
        return functional.relu(inner + shortcut, inplace=True)


class ResNet(PatchEncoder):
    """A residual network of bottlenecks. Stages: stem, layer1, layer2 … (the last one with the mean over the patch)."""

    def __init__(self, blocks: Sequence[int], channels: int = 64) -> None:
        """Make the layers, their numbers to be loaded.

        Args:
            blocks: bottlenecks of layer1, layer2 …
            channels: inside a bottleneck of layer1; each layer doubles them.
        """
        super().__init__()
        self.stage_names = ("stem", *(f"layer{index}" for index in range(1, len(blocks) + 1)))
        self.width = int(channels * 2 ** (len(blocks) - 1) * EXPANSION)
        self.conv1 = _conv(3, channels, 7, 2)
        self.bn1 = StoredBatchNorm(channels)
        before = channels
        for index, count in enumerate(blocks):
            inside = channels * 2**index
            strides = [1 if index == 0 else 2] + [1] * (count - 1)
            places = [before] + [inside * EXPANSION] * (count - 1)
            pairs = zip(places, strides, strict=True)
            layer = nn.Sequential(*(Bottleneck(place, inside, stride) for place, stride in pairs))
            self.add_module(f"layer{index + 1}", layer)
            before = inside * EXPANSION

    def prepare(self, rgb_BCHW: Tensor) -> Tensor:
        """Return colours by ImageNet's mean and spread."""
        return IMAGENET.normalised(rgb_BCHW)

    def run_stage(self, index: int, hidden: Hidden) -> Hidden:
        """Run the stem or one layer."""
        (hidden_BCHW,) = hidden
        if index == 0:
            hidden_BCHW = functional.relu(self.bn1(self.conv1(hidden_BCHW)), inplace=True)
            return (functional.max_pool2d(hidden_BCHW, 3, stride=2, padding=1),)
        hidden_BCHW = self.get_submodule(self.stage_names[index])(hidden_BCHW)
        last = index + 1 == len(self.stage_names)
        return (hidden_BCHW.mean(dim=(2, 3)),) if last else (hidden_BCHW,)

    def stage_modules(self, index: int) -> list[nn.Module | nn.Parameter]:
        """Return the stem's two modules, or a layer."""
        return [self.conv1, self.bn1] if index == 0 else [self.get_submodule(self.stage_names[index])]


def _conv(before: int, after: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, size, stride, padding=size // 2, bias=False)
