"""Estimators that sort the updates' values of one coordinate: median, trimmed mean, the last step of Bulyan.

By definition none of them knows weights: each hospital counts once, however many patients it has, and so does an update
that came late. All are exact: a mean of float32 values, added from the smallest to the largest in float64 and rounded
once; so the result does not depend on names, on the order of arrival, or on the number of threads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fedpath.core.exchange.stored import F32
from fedpath.server.aggregation.networks import network


def median(values_NM: F32, weights: Sequence[float], out_M: F32) -> None:
    """Write the coordinate-wise median; of an even number the mean of the two in the middle (Yin et al., ICML 2018).

    See `fedpath.server.aggregation.blocks.Reduce`.
    """
    n = len(values_NM)
    _mean_of_ranks(values_NM, (n - 1) // 2, n // 2 + 1, out_M)


@dataclass(frozen=True, slots=True)
class TrimmedMean:
    """The coordinate-wise mean without the smallest and the largest values (Yin et al., ICML 2018).

    See `fedpath.server.aggregation.blocks.Reduce`.
    """

    trimmed: int
    """f: values left out at each end; there are more than 2f."""

    def __call__(self, values_NM: F32, weights: Sequence[float], out_M: F32) -> None:
        """Write it."""
        _mean_of_ranks(values_NM, self.trimmed, len(values_NM) - self.trimmed, out_M)


@dataclass(frozen=True, slots=True)
class NearestMean:
    """The coordinate-wise mean of the values that are closest to the median: Bulyan's, of the updates it selected.

    El Mhamdi, Guerraoui and Rouault, ICML 2018: of θ selected updates the β = θ − 2f closest ones. Of two values that
    are as close, the smaller counts. See `fedpath.server.aggregation.blocks.Reduce`.
    """

    left_out: int
    """2f: there are more values."""

    def __call__(self, values_NM: F32, weights: Sequence[float], out_M: F32) -> None:
        """Write it."""
        from fedpath.server.aggregation.kernels import nearest_mean

        n = len(values_NM)
        nearest_mean(values_NM, network(n, 0, n), n - self.left_out, out_M)


def _mean_of_ranks(values_NM: F32, first: int, last: int, out_M: F32) -> None:
    # numba takes a second to import, and who averages does without.
    from fedpath.server.aggregation.kernels import middle_mean

    middle_mean(values_NM, network(len(values_NM), first, last), first, last, out_M)
