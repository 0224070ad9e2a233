"""All that a hospital has, ready to train a federation's model on."""

from fedpath.core.cohort.clinical.join import load_clinical
from fedpath.core.cohort.examples import Example, load_examples, load_site_cohort
from fedpath.core.cohort.manifest import SPLITS, Split
from fedpath.core.config import FederationConfig, SiteConfig
from fedpath.core.models.registry import fields_read


def load_site_examples(site: SiteConfig, federation: FederationConfig) -> dict[Split, list[Example]]:
    """Load every split of the hospital that a site.toml describes, under a federation's labels and feature width.

    Clinical data is read where the federation's model uses it, and only there.

    Raises:
        DataError: the manifest, a feature file or the clinical table is wrong.
    """
    cohort = load_site_cohort(site, federation.task.labels)
    schema = fields_read(federation.model.name, federation.clinical)
    records = None if schema is None else load_clinical(site, schema, cohort).records
    width = federation.features.width
    return {split: load_examples(cohort, site.data.features, split, width=width, records=records) for split in SPLITS}
