"""What this hospital has for a run: its cohort, its bags in memory, its clinical table."""

from pathlib import Path

from fedpath.core.cohort.clinical.join import SiteClinical, load_clinical
from fedpath.core.cohort.examples import Example, load_examples, load_site_cohort
from fedpath.core.cohort.manifest import Cohort, Split
from fedpath.core.config import SiteConfig
from fedpath.core.config.clinical import ClinicalSchema
from fedpath.core.exchange.messages import RunFacts


class SiteData:
    """Reads what an order needs, each thing once: the splits of a run come from one state of the hospital's files.

    Args:
        config: site.toml.
    """

    def __init__(self, config: SiteConfig) -> None:
        self._config = config
        self._examples: dict[Split, list[Example]] = {}
        self._loaded_for: tuple[object, ...] = ()
        self._tabled: tuple[tuple[str, Cohort], SiteClinical] | None = None

    def cohort(self, facts: RunFacts) -> Cohort:
        """Return the slides of the manifest.

        Raises:
            DataError: the manifest is wrong, or holds a label that the federation does not know.
        """
        return load_site_cohort(self._config, facts.labels)

    def examples(self, split: Split, facts: RunFacts, features: Path) -> list[Example]:
        """Return a split's bags from the folder ``features``, loaded once a stage.

        Raises:
            DataError: a feature file or the clinical table is wrong.
        """
        fields = None if facts.clinical is None else in_order(facts.clinical)
        wanted = (features, tuple(facts.labels), facts.features.width, fields)
        if self._loaded_for != wanted:
            self._examples, self._loaded_for = {}, wanted
        if split not in self._examples:
            cohort, width, records = self.cohort(facts), facts.features.width, None
            if facts.clinical is not None:
                records = self.clinical(facts.clinical, cohort).records
            self._examples[split] = load_examples(cohort, features, split, width=width, records=records)
        return self._examples[split]

    def clinical(self, schema: ClinicalSchema, cohort: Cohort) -> SiteClinical:
        """Return the clinical table, read once for a cohort.

        Raises:
            DataError: naming the table, the row and the remedy.
        """
        wanted = (in_order(schema), cohort)
        if self._tabled is None or self._tabled[0] != wanted:
            self._tabled = (wanted, load_clinical(self._config, schema, cohort))
        return self._tabled[1]

    def forget_examples(self) -> None:
        """Let go of the bags: another stage needs the memory."""
        self._examples, self._loaded_for = {}, ()


def in_order(schema: ClinicalSchema) -> str:
    """Return the fields as text that differs in their order too: it is the order of the entries of a record."""
    return schema.model_dump_json()
