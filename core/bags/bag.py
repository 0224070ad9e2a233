"""A slide as a model sees it: one feature vector a patch, and where each patch lies.

Shape suffixes: N patches, D features, H × W pixels, C colours, 2 is (x, y).
"""

from dataclasses import dataclass

import torch

from fedpath.core.clinical.record import ClinicalRecord


@dataclass(frozen=True, slots=True)
class Bag:
    """The patches of one slide, in the order of its feature file."""

    slide_id: str
    features_ND: torch.Tensor
    """On the CPU, in the file's own float type (float16 in our files)."""
    coords_N2: torch.Tensor
    """int64, the patch's top-left corner in pixels of level 0."""
    patch_size_level0: int
    """Edge of a patch in pixels of level 0; 0 when the file neither states it nor lets it be inferred."""
    coords_are_level0: bool = True
    """False when a file gives micrometres and the slide's µm/px is unknown: `coords_N2` and `patch_size_level0` are
    then pixels at the patches' own resolution, good for distances but not for drawing on the slide."""
    pixels_NHWC: torch.Tensor | None = None
    """uint8 RGB of each patch at the encoder's resolution, where a model reads pixels; may be mapped from a file."""
    clinical: ClinicalRecord | None = None
    """Of the patient, where the hospital has any."""

    def __len__(self) -> int:
        """Return N, the number of patches."""
        return int(self.features_ND.shape[0])
