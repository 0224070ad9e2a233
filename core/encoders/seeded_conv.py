"""`seeded-conv`: an encoder without a download, for demos and tests. It has never seen tissue.

Three convolutions with random weights; the mean and the spread of every channel over the patch are its features.
Random filters respond to edges, blobs and colours of several sizes, and their statistics tell textures apart: enough to
find planted nests, far from what a trained encoder knows.

Every installation must have the same weights, to the bit. So they are whole random numbers from a generator of their
own, turned into floats by correctly rounded operations only; random normal numbers would differ between processors.

Its kernels can be trained like any encoder's. A stage hands on, beside its activations, the statistics of the stages so
far: the features are made of all of them.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpath.core.encoders.base import Hidden, PatchEncoder

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


class SeededConv(PatchEncoder):
    """See the module's docstring. Patches have H and W of at least 16."""

    width = WIDTH
    stage_names = ("conv-1", "conv-2", "conv-3")
    mean_D: Tensor
    sd_D: Tensor

    def __init__(self) -> None:
        """Make the layers; their numbers are those of ``drawn_weights``."""
        super().__init__()
        shapes = zip(CHANNELS, (3, *CHANNELS[:-1]), KERNELS, strict=True)
        self.kernels = nn.ParameterList(
            nn.Parameter(torch.empty(after, before, size, size)) for after, before, size in shapes
        )
        self.register_buffer("mean_D", torch.empty(WIDTH))
        self.register_buffer("sd_D", torch.empty(WIDTH))

    def prepare(self, rgb_BCHW: Tensor) -> Tensor:
        """Return colours in −1…1."""
        return rgb_BCHW.mul(2).sub_(1)

    def run_stage(self, index: int, hidden: Hidden) -> Hidden:
        """Run one convolution; hidden states are (activations, mean 1, spread 1, mean 2, spread 2, …)."""
        hidden_BCHW, *statistics = hidden
        kernel = self.kernels[index]
        hidden_BCHW = functional.relu(functional.conv2d(hidden_BCHW, kernel, stride=2, padding=kernel.shape[2] // 2))
        # A channel without spread has no direction in which it grows: torch takes the gradient there as 0.
        spread_BC, mean_BC = torch.std_mean(hidden_BCHW, dim=(2, 3), correction=0)
        statistics += [mean_BC, spread_BC]
        if index + 1 < len(self.kernels):
            return (hidden_BCHW, *statistics)
        logarithms_BD = torch.log(torch.cat(statistics, dim=1) + _FLOOR)
        return ((logarithms_BD - self.mean_D) / self.sd_D,)

    def stage_modules(self, index: int) -> list[nn.Module | nn.Parameter]:
        """Return one kernel."""
        return [self.kernels[index]]


def drawn_weights() -> dict[str, Tensor]:
    """Return the state that every installation has."""
    generator = torch.Generator().manual_seed(SEED)
    state: dict[str, Tensor] = {}
    before = 3
    for index, (after, size) in enumerate(zip(CHANNELS, KERNELS, strict=True)):
        area = size * size
        whole = torch.randint(-128, 128, (after, before, size, size), generator=generator) * area
        # Filters without a mean see structure instead of brightness: every other one, so that colour counts too.
        whole[::2] -= whole[::2].sum(dim=(2, 3), keepdim=True) // area
        # He's scale keeps activations near 1 through the layers.
        scale = math.sqrt(2 / (before * area)) / (_UNIFORM_SD * area)
        state[f"kernels.{index}"] = (whole.double() * scale).float()
        before = after
    return state | {"mean_D": torch.tensor(_MEAN) / 100, "sd_D": torch.tensor(_SD) / 100}
