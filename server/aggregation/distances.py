"""How much each update counts, from the distances between all of them: Krum, Multi-Krum, Bulyan, the geometric median.

None of these needs to see a coordinate. Krum and its kin choose by distances; the geometric median is a weighted mean
of the updates, and where the weighted mean with weights aᵢ (Σ aᵢ = 1) lies follows from their distances dᵢⱼ alone:
‖Σ aᵢxᵢ − xₖ‖² = Σᵢ aᵢdᵢₖ² − ½ Σᵢⱼ aᵢaⱼdᵢⱼ². So an estimator reads the updates' files twice, whatever steps it takes.

Everything here is float64, on matrices [N, N] of squared distances between N updates; equal scores go to the site whose
name comes first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

Weigh = Callable[[F64, Sequence[float]], list[float]]
"""Takes the squared distances and the updates' own weights; returns the weight with which each counts, 0 for none."""

_SMOOTHING = 1e-6
_STEPS = 10_000
_STILL = 1e-10


@dataclass(frozen=True, slots=True)
class Krum:
    """Chooses the updates with the closest neighbours (Blanchard et al., NeurIPS 2017).

    The score of an update is the sum of the squared distances to its n − f − 2 closest others. Krum is the update with
    the lowest score, Multi-Krum the mean of those with the lowest scores; each counts once, whatever its patients.
    """

    byzantine: int
    """f; there are at least 2f + 3 updates."""
    keep: int | None = 1
    """How many are chosen, at most n − f; all but f for None."""

    def __call__(self, squared_NN: F64, weights: Sequence[float]) -> list[float]:
        """Return 1 for those that are chosen."""
        n = len(squared_NN)
        most = n - self.byzantine
        chosen = np.argsort(_krum_scores(squared_NN, self.byzantine), kind="stable")[: min(self.keep or most, most)]
        return [float(place in chosen) for place in range(n)]


@dataclass(frozen=True, slots=True)
class BulyanSelection:
    """Chooses n − 2f updates, each by Krum among those that are left (El Mhamdi et al., ICML 2018)."""

    byzantine: int
    """f; there are at least 4f + 3 updates."""

    def __call__(self, squared_NN: F64, weights: Sequence[float]) -> list[float]:
        """Return 1 for those that are chosen."""
        n = len(squared_NN)
        left = list(range(n))
        while len(left) > 2 * self.byzantine:
            scores = _krum_scores(squared_NN[np.ix_(left, left)], self.byzantine)
            del left[int(np.argmin(scores))]
        return [float(place not in left) for place in range(n)]


def geometric_median(squared_NN: F64, weights: Sequence[float]) -> list[float]:
    """Return the weights whose mean is closest to all updates: argmin_v Σₖ αₖ ‖v − xₖ‖.

    Pillutla, Kakade and Harchaoui, 2022 ("Robust Aggregation for Federated Learning"), smoothed Weiszfeld steps from
    the weighted mean: aₖ ∝ αₖ / max(ν, ‖v − xₖ‖), α the patients' shares, ν 10⁻⁶ of the updates' mean distance from
    where it starts. They end when no weight moves by more than 10⁻¹⁰, or after 10,000.
    """
    alpha_N = np.asarray(weights) / np.sum(weights)
    shares_N = alpha_N
    smoothing = _SMOOTHING * float(alpha_N @ _distances_from(shares_N, squared_NN))
    if smoothing == 0:
        return [float(share) for share in alpha_N]
    for _ in range(_STEPS):
        pull_N = alpha_N / np.maximum(smoothing, _distances_from(shares_N, squared_NN))
        before_N, shares_N = shares_N, pull_N / pull_N.sum()
        if np.abs(shares_N - before_N).max() <= _STILL:
            break
    return [float(share) for share in shares_N]


def _krum_scores(squared_NN: F64, byzantine: int) -> F64:
    """Return each update's score. Where n − f − 2 is below 1 (the last choices of Bulyan), the closest other counts."""
    n = len(squared_NN)
    others_NM = squared_NN[~np.eye(n, dtype=bool)].reshape(n, n - 1)
    scores_N: F64 = np.sort(others_NM, axis=1)[:, : max(1, n - byzantine - 2)].sum(axis=1)
    return scores_N


def _distances_from(shares_N: F64, squared_NN: F64) -> F64:
    """Return the distance of each update from their weighted mean."""
    reach_N = squared_NN @ shares_N
    return np.sqrt(np.maximum(0.0, reach_N - shares_N @ reach_N / 2))
