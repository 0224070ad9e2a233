"""Clinical data for the tests of multimodal models: a schema, what was agreed on, records; their vector, literally."""

import torch
from torch import Tensor

from fedpath.core.clinical.record import ClinicalRecord
from fedpath.core.clinical.standard import Standard
from fedpath.core.config.clinical import BinaryField, CategoryField, ClinicalSchema, NumberField

SCHEMA = ClinicalSchema(
    fields={
        "age": NumberField(type="number", unit="years", minimum=0, maximum=120, outcome_derived=False),
        "grade": CategoryField(type="category", vocabulary=["1", "2", "3"], outcome_derived=False),
        "er": BinaryField(type="binary", positive="pos", negative="neg", outcome_derived=False),
        "size": NumberField(type="number", unit="mm", minimum=0, maximum=300, outcome_derived=False),
    }
)
STANDARD = Standard(
    patients=20,
    mean={"age": 60.0, "size": 25.0},
    sd={"age": 8.0, "size": 10.0},
    shares={"grade": (0.25, 0.5, 0.25), "er": (0.375, 0.625)},
)
N_ENTRIES = 11
"""age, its state "missing"; grade 1, 2, 3, missing; er neg, pos, missing; size, missing."""
FIELD_OF_ENTRY = ("age",) * 2 + ("grade",) * 4 + ("er",) * 3 + ("size",) * 2
MISSING_ENTRIES = {"age": 1, "grade": 5, "er": 8, "size": 10}
TYPICAL = (0, 0, 0.25, 0.5, 0.25, 0, 0.375, 0.625, 0, 0, 0)
"""The mean patient."""


def record(*values: float | None) -> ClinicalRecord:
    """Age, index of the grade, ER (0 or 1), size; None for what is missing."""
    return ClinicalRecord(
        torch.tensor([0.0 if value is None else value for value in values], dtype=torch.float64),
        torch.tensor([value is not None for value in values]),
    )


def literal_vector(*values: float | None) -> list[Tensor]:
    """The entries of a record by ``STANDARD``, in float64."""
    age, grade, er, size = values
    entries = [0.0] * N_ENTRIES
    if age is None:
        entries[1] = 1.0
    else:
        entries[0] = (age - 60) / 8
    entries[5 if grade is None else 2 + int(grade)] = 1.0
    entries[8 if er is None else 6 + int(er)] = 1.0
    if size is None:
        entries[10] = 1.0
    else:
        entries[9] = (size - 25) / 10
    return list(torch.tensor(entries, dtype=torch.float64))
