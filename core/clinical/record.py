"""What is known of one patient besides the slides."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class ClinicalRecord:
    """One patient's fields in the schema's order, as the hospital has them: not standardised, nothing filled in.

    A patient of whom no field is known has no record.
    """

    values_F: Tensor
    """float64: a number in the schema's unit; for a category the index of its word; for a binary field 0 or 1. 0
    where the field is not present."""
    present_F: Tensor
    """bool: whether the field is known; at least one is."""
