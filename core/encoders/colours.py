"""What encoders expect of colours."""

import torch
from torch import Tensor

IMAGENET = "imagenet: (rgb/255-mean)/sd, mean 0.485 0.456 0.406, sd 0.229 0.224 0.225"
"""The transform of most encoders of pathology and of all that start from ImageNet, as feature files name it."""
_MEAN = (0.485, 0.456, 0.406)
_SD = (0.229, 0.224, 0.225)


def imagenet_normalised(rgb_BCHW: Tensor) -> Tensor:
    """Return colours in 0…1 less ImageNet's mean, over its standard deviation."""
    # Not a buffer: what is the same for every installation has no place among the weights.
    mean_C11 = torch.tensor(_MEAN, dtype=rgb_BCHW.dtype, device=rgb_BCHW.device).view(3, 1, 1)
    sd_C11 = torch.tensor(_SD, dtype=rgb_BCHW.dtype, device=rgb_BCHW.device).view(3, 1, 1)
    return rgb_BCHW.sub(mean_C11).div_(sd_C11)
