"""What hospitals agree on about clinical data, for training without a federation: made as the federation makes it."""

from collections.abc import Iterable, Sequence

from fedpath.core.clinical.record import ClinicalRecord
from fedpath.core.clinical.standard import Standard, agree, statistics_of
from fedpath.core.cohort.examples import Example
from fedpath.core.config.clinical import ClinicalSchema


def standard_of(schema: ClinicalSchema, hospitals: Iterable[tuple[Sequence[Example], int]]) -> Standard:
    """Agree on the training patients of one or more hospitals.

    Each hospital's statistics are its own, under its own minimum, before they are put together: pooled data are read as
    the federation of the same hospitals reads them.

    Args:
        schema: the federation's fields.
        hospitals: each one's training examples, and the fewest patients that its policy reports on.
    """
    stated = (
        statistics_of(schema, _records(examples).values(), min_patients=minimum) for examples, minimum in hospitals
    )
    return agree(schema, [statistics for statistics in stated if statistics is not None])


def _records(examples: Iterable[Example]) -> dict[str, ClinicalRecord]:
    """Return each patient's record once, however many slides there are."""
    return {example.patient_id: example.bag.clinical for example in examples if example.bag.clinical is not None}
