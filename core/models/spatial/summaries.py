"""Windows of a slide that stand for their patches: what makes a global layer linear in the number of patches."""

import torch
from torch import Tensor


class Windows:
    """The patches of a slide in square windows, at most ``limit`` of them whatever the size of the slide.

    Args:
        cells_N2: int64 cell of each patch.
        limit: most windows, ≥ 1; the edge of a window doubles until there are no more.
        edge: smallest edge of a window in cells.
    """

    def __init__(self, cells_N2: Tensor, limit: int, edge: int = 4) -> None:
        self.edge = edge
        while True:
            window_N2 = torch.div(cells_N2, self.edge, rounding_mode="floor")
            columns = int(window_N2[:, 0].max()) + 1
            places_M, self.window_N, counts_M = torch.unique(
                window_N2[:, 1] * columns + window_N2[:, 0], return_inverse=True, return_counts=True
            )
            if len(places_M) <= limit:
                break
            self.edge *= 2
        self.counts_M = counts_M
        self.log_counts_M = counts_M.to(torch.float64).log()
        # Whole cells, so that distances to them are truncated as those between patches.
        self.centres_M2 = self.mean(cells_N2.to(torch.float64)).round().to(torch.int64)

    def __len__(self) -> int:
        """Return M, the number of windows that hold a patch."""
        return len(self.counts_M)

    def mean(self, values_HNd: Tensor) -> Tensor:
        """Return the mean (…, M, d) of each window's rows of (…, N, d), in float32 at least."""
        # Sums of thousands of patches, and their counts, are beyond half precision.
        values_HNd = values_HNd.to(torch.promote_types(values_HNd.dtype, torch.float32))
        window_N = self.window_N.to(values_HNd.device)
        sums_HMd = values_HNd.new_zeros(*values_HNd.shape[:-2], len(self), values_HNd.shape[-1])
        means_HMd: Tensor = sums_HMd.index_add(-2, window_N, values_HNd) / self.counts_M.to(values_HNd)[:, None]
        return means_HMd

    def spread(self, values_HM: Tensor) -> Tensor:
        """Return (H, N): each window's value, shared out equally among its patches."""
        shares_HM: Tensor = values_HM / self.counts_M.to(values_HM)
        return shares_HM[:, self.window_N.to(values_HM.device)]
