"""What the hospitals agree on about a clinical field: its mean and spread, from counts and sums and never from rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Standard:
    """What holds for all hospitals; from the training patients whose hospitals reported a field."""

    patients: int
    """Training patients with a record, at all hospitals together; 0 when nobody has clinical data."""
    mean: Mapping[str, float] = field(default_factory=dict)
    """Of each number field, in its unit. A number field that is absent here is not read by the models."""
    sd: Mapping[str, float] = field(default_factory=dict)
    """Population standard deviation of the same fields."""
    shares: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Of each category and binary field that was reported: the share of each word among the patients who have it."""
