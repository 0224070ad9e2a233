"""What encoders expect of colours."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Colours:
    """A mean and a spread by which colours in 0…1 are moved and scaled."""

    name: str
    mean: tuple[float, float, float]
    sd: tuple[float, float, float]

    @property
    def transform(self) -> str:
        """From 8-bit RGB to the encoder's input, as feature files name it."""
        mean, sd = (" ".join(map(str, numbers)) for numbers in (self.mean, self.sd))
        return f"{self.name}: (rgb/255-mean)/sd, mean {mean}, sd {sd}"

    def normalised(self, rgb_BCHW: Tensor) -> Tensor:
        """Return colours in 0…1 less the mean, over the standard deviation."""
        # Not buffers: what is the same for every installation has no place among the weights.
        mean_C11 = torch.tensor(self.mean, dtype=rgb_BCHW.dtype, device=rgb_BCHW.device).view(3, 1, 1)
        sd_C11 = torch.tensor(self.sd, dtype=rgb_BCHW.dtype, device=rgb_BCHW.device).view(3, 1, 1)
        return rgb_BCHW.sub(mean_C11).div_(sd_C11)


IMAGENET = Colours("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Of most encoders of pathology and of all that start from ImageNet."""
BIOPTIMUS = Colours("bioptimus", (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
LUNIT = Colours("lunit", (0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))
HALVES = Colours("halves", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
