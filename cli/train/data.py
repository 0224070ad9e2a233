"""What is trained on: the examples of one or more hospitals, made alike."""

from collections.abc import Sequence
from dataclasses import replace

from fedpath.client.agent.contract import contract_of
from fedpath.core.cohort import Example, Split, load_site_cohort
from fedpath.core.config import FederationConfig, SiteConfig
from fedpath.core.errors import DataError
from fedpath.core.exchange.contract import differences, disagreements
from fedpath.core.training.data import load_site_examples


def check_features(federation: FederationConfig, sites: Sequence[SiteConfig]) -> None:
    """Refuse to mix features that were made differently: results would differ for no visible reason."""
    stated = {}
    for site in sites:
        slides = load_site_cohort(site, federation.task.labels).slides
        stated[site.site.name] = contract_of(
            [site.data.features / f"{slide.slide_id}.h5" for slide in slides], site.features
        )
    wrong = {name: "; ".join(differences(federation.features, contract)) for name, contract in stated.items()}
    wrong = {name: reason for name, reason in wrong.items() if reason} or disagreements(stated)
    for name, reason in wrong.items():
        raise DataError(f"site {name}: {reason}", remedy="encode its slides with the federation's settings")


def pool(federation: FederationConfig, sites: Sequence[SiteConfig]) -> dict[Split, list[Example]]:
    """Return the examples of all sites by split; patients of different hospitals stay different people."""
    pooled: dict[Split, list[Example]] = {"train": [], "validation": [], "test": []}
    for site in sites:
        for split, examples in load_site_examples(site, federation).items():
            pooled[split] += [
                replace(example, patient_id=f"{site.site.name}:{example.patient_id}") for example in examples
            ]
    return pooled


def site_and_patient(example: Example) -> tuple[str, str]:
    """Return an example's hospital and its patient as the hospital names it."""
    site, _, patient = example.patient_id.partition(":")
    return site, patient
