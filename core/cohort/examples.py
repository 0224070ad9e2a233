"""From a cohort and a folder of feature files to bags in memory, ready to train on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedpath.core.bags.bag import Bag
from fedpath.core.bags.store import read_bag
from fedpath.core.clinical.record import ClinicalRecord
from fedpath.core.cohort.manifest import Cohort, Split, load_cohort
from fedpath.core.config import SiteConfig
from fedpath.core.errors import DataError


@dataclass(frozen=True, slots=True)
class Example:
    """One slide to learn from or to be judged on."""

    bag: Bag
    target: int
    """Class index."""
    patient_id: str
    slide_id: str


def load_examples(
    cohort: Cohort,
    features: Path,
    split: Split,
    *,
    width: int,
    records: Mapping[str, ClinicalRecord] | None = None,
) -> list[Example]:
    """Load the bags of a split into memory, in the cohort's order.

    Args:
        cohort: the slides.
        features: folder with ``<slide_id>.h5`` a slide.
        split: train, validation or test.
        width: the feature width the federation agreed on.
        records: clinical data by patient; all slides of a patient share the record.

    Raises:
        DataError: a feature file is missing, broken, empty or of another width.
    """
    slides = cohort.of(split)
    paths = [features / f"{slide.slide_id}.h5" for slide in slides]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        more = f" (and {len(missing) - 1} more of {len(paths)})" if len(missing) > 1 else ""
        raise DataError(
            f"{missing[0]}: no feature file for slide '{missing[0].stem}' of {cohort.name}{more}",
            remedy="encode its slide into that folder, or correct 'features' in site.toml",
        )
    examples = []
    for slide, path in zip(slides, paths, strict=True):
        bag = read_bag(path)
        n_instances, found = bag.features_ND.shape
        if n_instances == 0:
            raise DataError(f"{path}: no patches", remedy=f"remove slide '{slide.slide_id}' or find its tissue again")
        if found != width:
            raise DataError(
                f"{path}: features are {found} wide, the federation's are {width}",
                remedy="encode the slides with the federation's encoder",
            )
        bag = replace(bag, clinical=(records or {}).get(slide.patient_id))
        examples.append(Example(bag, slide.label, slide.patient_id, slide.slide_id))
    return examples


def load_site_cohort(site: SiteConfig, labels: Sequence[str]) -> Cohort:
    """Load the cohort that a site.toml describes.

    Raises:
        DataError: the manifest is wrong, or holds a label that is not in ``labels``.
    """
    data = site.data
    return load_cohort(
        data.manifest,
        labels=labels,
        validation_share=data.validation_share,
        test_share=data.test_share,
        split_seed=data.split_seed,
        name=site.site.name,
    )
