"""`seeded-conv`: an encoder without a download, for demos and tests. It has never seen tissue.

Three convolutions with random weights; the mean and the spread of every channel over the patch are its features.
Random filters respond to edges, blobs and colours of several sizes, and their statistics tell textures apart: enough to
find planted nests, far from what a trained encoder knows.

Every installation must have the same weights, to the bit. So they are whole random numbers from a generator of their
own, turned into floats by correctly rounded operations only; random normal numbers would differ between processors.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

CHANNELS = (12, 20, 32)
KERNELS = (5, 3, 3)
WIDTH = 2 * sum(CHANNELS)
SEED = 1
_FLOOR = 0.01
"""Added before the logarithm: a silent channel has statistics of 0."""
_UNIFORM_SD = 73.9
"""Standard deviation of whole numbers drawn evenly from -128…127."""

# Mean and standard deviation, in hundredths, of the logarithm of each statistic over the patches of 60 drawn slides in
# six stains. Without this, colours common to all patches drown what distinguishes them.
# fmt: off
_MEAN = (
    -295, -336, -335, -352, -349, -446, -356, -109, -293, -187, -366, -90, -205, -218, -250, -273, -275, -385, -290,
    -155, -199, -147, -291, -200, -314, -273, -361, -301, -338, -289, -331, -129, -339, -420, -378, -405, -318,
    -220, -326, -153, -329, -455, -340, -164, -250, -241, -296, -268, -263, -211, -275, -175, -267, -335, -313,
    -335, -244, -218, -256, -203, -257, -421, -264, -176, -306, -149, -326, -436, -332, -351, -342, -146, -286,
    -111, -327, -339, -316, -360, -336, -347, -351, -278, -350, -305, -344, -394, -338, -396, -340, -289, -321,
    -207, -319, -403, -339, -238, -248, -184, -271, -377, -274, -274, -282, -194, -235, -182, -268, -263, -267,
    -309, -288, -289, -299, -265, -288, -265, -289, -311, -284, -340, -282, -248, -264, -215, -268, -326, -286,
    -257,
)
_SD = (
    34, 77, 29, 93, 22, 17, 25, 76, 30, 99, 18, 35, 33, 68, 28, 74, 21, 54, 28, 57, 26, 47, 17, 34, 28, 72, 30, 83,
    29, 55, 23, 45, 32, 36, 27, 35, 27, 94, 32, 39, 29, 9, 29, 46, 27, 36, 29, 49, 38, 37, 24, 32, 31, 66, 31, 48,
    26, 61, 31, 34, 25, 35, 32, 26, 23, 35, 29, 17, 29, 43, 29, 30, 24, 39, 31, 35, 29, 46, 26, 58, 29, 41, 31, 84,
    28, 23, 30, 47, 31, 70, 34, 52, 30, 38, 33, 30, 24, 27, 27, 40, 30, 38, 30, 27, 26, 30, 32, 30, 26, 40, 28, 40,
    29, 28, 30, 50, 28, 27, 32, 48, 31, 36, 30, 31, 28, 49, 31, 21,
)
# fmt: on


class SeededConv(nn.Module):
    """See the module's docstring. Shapes: B patches, C channels, H × W pixels, D features."""

    mean_D: Tensor
    sd_D: Tensor

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(SEED)
        kernels: list[nn.Parameter] = []
        before = 3
        for after, size in zip(CHANNELS, KERNELS, strict=True):
            area = size * size
            whole = torch.randint(-128, 128, (after, before, size, size), generator=generator) * area
            # Filters without a mean see structure instead of brightness: every other one, so that colour counts too.
            whole[::2] -= whole[::2].sum(dim=(2, 3), keepdim=True) // area
            # He's scale keeps activations near 1 through the layers.
            scale = math.sqrt(2 / (before * area)) / (_UNIFORM_SD * area)
            kernels.append(nn.Parameter((whole.double() * scale).float(), requires_grad=False))
            before = after
        self.kernels = nn.ParameterList(kernels)
        self.register_buffer("mean_D", torch.tensor(_MEAN) / 100)
        self.register_buffer("sd_D", torch.tensor(_SD) / 100)

    def forward(self, patches_BCHW: Tensor) -> Tensor:
        """Return features (B×D) of patches (B×3×H×W, values in −1…1); H and W at least 16."""
        return (self.statistics(patches_BCHW) - self.mean_D) / self.sd_D

    def statistics(self, patches_BCHW: Tensor) -> Tensor:
        """Return the logarithms (B×D) of every channel's mean and spread over the patch."""
        found = []
        hidden_BCHW = patches_BCHW
        for kernel in self.kernels:
            edge = kernel.shape[2] // 2
            hidden_BCHW = functional.relu(functional.conv2d(hidden_BCHW, kernel, stride=2, padding=edge))
            spread_BC, mean_BC = torch.std_mean(hidden_BCHW, dim=(2, 3), correction=0)
            found += [mean_BC, spread_BC]
        return torch.log(torch.cat(found, dim=1) + _FLOOR)
