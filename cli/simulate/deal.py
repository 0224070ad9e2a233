"""One cohort's patients dealt to many simulated hospitals."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedpath.core.cohort.manifest import SPLITS, Cohort, Split
from fedpath.core.errors import ConfigError


def deal_patients(cohort: Cohort, sites: Sequence[str], *, seed: int, skew: float | None = None) -> dict[str, str]:
    """Give every patient a hospital; return the hospitals by patient.

    Numbers of patients differ by at most one between hospitals, in all and among those to train on.

    Without ``skew`` the hospitals also have each class alike: patients are dealt like cards, split by split and class
    by class. With it each hospital has a mixture of the classes of its own, drawn from the Dirichlet distribution with
    the parameters ``skew`` × the cohort's share of each class, as in Hsu et al. 2019 ("Measuring the effects of
    non-identical data distribution for federated visual classification"): the smaller, the more they differ.

    Args:
        cohort: whose patients have their splits; they keep them.
        sites: the hospitals.
        seed: of the deal.
        skew: above 0.

    Raises:
        ConfigError: there are fewer patients to train on than hospitals.
    """
    training = len(cohort.patients("train"))
    if training < len(sites):
        raise ConfigError(
            f"{len(sites)} hospitals, but {cohort.name} has {training} training patients",
            remedy=f"give at most --sites {training}, or a larger cohort",
        )
    classes = cohort.classes()
    strata = {split: _by_class(cohort, split, classes, seed) for split in SPLITS}
    if skew is None:
        cards = [patient for split in SPLITS for patients in strata[split] for patient in patients]
        return {patient: sites[index % len(sites)] for index, patient in enumerate(cards)}
    shares_C = np.bincount(list(classes.values()), minlength=len(cohort.labels)) / len(classes)
    return _skewed([strata[split] for split in SPLITS], sites, shares_C * skew, np.random.default_rng(seed))


def _by_class(cohort: Cohort, split: Split, classes: dict[str, int], seed: int) -> list[list[str]]:
    """Return a split's patients, a list a class, in the order of a hash of seed and name."""
    by_class: list[list[str]] = [[] for _ in cohort.labels]
    for patient in cohort.patients(split):
        by_class[classes[patient]].append(patient)
    for patients in by_class:
        patients.sort(key=lambda patient: hashlib.sha256(f"{seed}\0{patient}".encode()).digest())
    return by_class


def _skewed(
    strata: list[list[list[str]]], sites: Sequence[str], parameters_C: NDArray[np.float64], random: np.random.Generator
) -> dict[str, str]:
    """Deal with mixtures: hospitals take turns, in an order drawn for each turn, and draw a class of their own mixture.

    A class that is used up is drawn no more; whoever comes last in the last turns takes what is left.
    """
    present = parameters_C > 0
    mixtures_SC = np.zeros((len(sites), len(parameters_C)))
    mixtures_SC[:, present] = random.dirichlet(parameters_C[present], len(sites))
    dealt: dict[str, str] = {}
    turn: list[int] = []
    for by_class in strata:
        left_C = np.array([len(patients) for patients in by_class])
        while left_C.sum():
            turn = turn or random.permutation(len(sites)).tolist()
            site = turn.pop()
            weights_C = np.where(left_C > 0, mixtures_SC[site], 0)
            # A hospital whose classes are all used up takes of the others as they are.
            weights_C = weights_C if weights_C.sum() > 0 else left_C
            chosen = int(random.choice(len(left_C), p=weights_C / weights_C.sum()))
            left_C[chosen] -= 1
            dealt[by_class[chosen][left_C[chosen]]] = sites[site]
    return dealt
