"""One global grid of patches from (0, 0), the same for every tool that reads the coordinates."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedpath.client.slides.tissue import Tissue


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Requested and level-0 sizes of the patches, kept apart.

    Attributes:
        mpp: µm/px of a patch as the encoder sees it.
        patch_px: its edge at `mpp`.
        patch_size_level0: its edge in level-0 pixels, rounded: also the distance between neighbours. A patch itself
            covers exactly patch_px · mpp micrometres, so neighbours overlap or miss each other by under half a pixel.
        columns, rows: patches that lie wholly inside the slide.
    """

    mpp: float
    patch_px: int
    patch_size_level0: int
    columns: int
    rows: int

    @classmethod
    def of(cls, *, width: int, height: int, mpp_level0: float, mpp: float, patch_px: int) -> "TileGrid":
        """Lay the grid over a slide of ``width`` × ``height`` level-0 pixels."""
        edge = max(1, round(patch_px * mpp / mpp_level0))
        return cls(mpp, patch_px, edge, columns=width // edge, rows=height // edge)

    def corners_in(self, tissue: Tissue, mpp_level0: float, min_share: float) -> NDArray[np.int64]:
        """Return the corners (N×2, level-0 pixels, row by row) of patches with at least ``min_share`` of tissue."""
        ys, xs = np.mgrid[: self.rows, : self.columns].reshape(2, -1) * self.patch_size_level0
        shares = tissue.shares(xs, ys, self.patch_size_level0, mpp_level0)
        return np.stack([xs, ys], axis=1)[shares >= min_share].astype(np.int64)
