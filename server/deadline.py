"""How long a round may last, from what earlier rounds took."""

from collections.abc import Sequence
from statistics import median

from fedpath.core.config.federated import DeadlineSection
from fedpath.server.records import RoundManifest

_LAST = 5
"""Rounds that are looked at: a hospital that got a faster machine is not judged by last week."""


def deadline_s(settings: DeadlineSection, longest_s: float, earlier: Sequence[RoundManifest]) -> float:
    """Return how many seconds the next round waits for its sites.

    Args:
        settings: `[deadline]`.
        longest_s: `server.round_timeout_s`: no round has more; the first one has it whole.
        earlier: the rounds so far, in order.
    """
    slowest = [
        max(part.seconds for part in manifest.sites.values() if part.outcome == "answered")
        for manifest in earlier[-_LAST:]
        if manifest.counted()
    ]
    if not slowest:
        return longest_s
    return min(longest_s, max(settings.floor_s, settings.factor * median(slowest)))
