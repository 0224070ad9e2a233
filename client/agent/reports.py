"""What may leave about a model and its training: figures, counts and parameters over enough patients, nothing else."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

from fedpath.core.cohort.examples import Example
from fedpath.core.errors import RefusedError
from fedpath.core.exchange.groups import group_of
from fedpath.core.exchange.messages import Metrics
from fedpath.core.exchange.wire import Arrays
from fedpath.core.models.protocol import BagModel
from fedpath.core.training.evaluation import NotFiniteError, examine


def check_enough(patients: int, *, site: str, min_patients: int, steps: int | None = None) -> None:
    """Refuse to train on fewer patients than the policy asks for: every update states how many there were.

    Args:
        patients: that are trained on.
        site: this site's name.
        min_patients: `policy.min_patients`.
        steps: `local.steps`, where the round is too short for all patients.

    Raises:
        RefusedError: without their number.
    """
    if patients < min_patients and steps is not None:
        raise RefusedError(
            f"site {site} refuses: {steps} steps train on fewer patients than its policy asks for",
            remedy="raise local.steps or training.accumulate_bags in federation.toml, or lower policy.min_patients in "
            "site.toml",
        )
    if patients < min_patients:
        raise RefusedError(
            f"site {site} refuses: fewer training patients than its policy asks for",
            remedy="lower policy.min_patients in site.toml, or wait for more patients",
        )


def figures(
    model: BagModel, examples: Sequence[Example], device: str, *, site: str, min_patients: int
) -> tuple[Metrics, dict[str, int]]:
    """Evaluate; figures over fewer patients than the policy's minimum are held back.

    Returns:
        What may leave; and how many patients went by which of the model's branches, which stays here.

    Raises:
        RefusedError: the model that came gives no finite figures.
    """
    patients = len({example.patient_id for example in examples})
    if patients < min_patients or not examples:
        return Metrics(), {}
    try:
        examined = examine(model, examples, device)
    except NotFiniteError:
        raise RefusedError(
            f"site {site}: the model that came gives no finite figures",
            remedy="lower training.learning_rate or set aggregation.max_update_norm in federation.toml",
        ) from None
    went = {example.patient_id: route for example, route in zip(examples, examined.routes, strict=True)}
    routes: Counter[str] = Counter(route for route in went.values() if route is not None)
    return Metrics(**dataclasses.asdict(examined.metrics)), dict(routes)


def groups_that_may_leave(
    trained: Arrays, came: Arrays, patients_by_group: dict[str, int], *, site: str, min_patients: int
) -> dict[str, int]:
    """Return the groups to send, each with the patients that trained it.

    A group that is still as it came, such as the head of a branch whose loss is switched off, was trained by
    nobody; one that fewer patients trained than the policy lets the hospital state stays here.

    Raises:
        RefusedError: nothing remains.
    """
    changed = {group_of(name) for name, array in trained.items() if not np.array_equal(array, came[name])}
    leaving = {group: n for group, n in patients_by_group.items() if group in changed and n >= min_patients}
    if not leaving:
        raise RefusedError(
            f"site {site} refuses: training changed nothing that it may send",
            remedy="does the model need clinical data that is not here, or is training.learning_rate in "
            "federation.toml far too small?",
        )
    return leaving


def without_clinical(examples: Sequence[Example]) -> list[Example]:
    """Return the examples without clinical data."""
    return [dataclasses.replace(example, bag=dataclasses.replace(example.bag, clinical=None)) for example in examples]
