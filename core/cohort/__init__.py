"""A hospital's cohort: the manifest of its slides, its patients and their splits, and its bags in memory."""

from fedpath.core.cohort.examples import Example, load_examples, load_site_cohort
from fedpath.core.cohort.manifest import SPLITS, Cohort, Slide, Split, load_cohort
from fedpath.core.cohort.splits import class_of, fold_patients, split_patients

__all__ = [
    "SPLITS",
    "Cohort",
    "Example",
    "Slide",
    "Split",
    "class_of",
    "fold_patients",
    "load_cohort",
    "load_examples",
    "load_site_cohort",
    "split_patients",
]
