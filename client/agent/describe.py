"""Before round 1: what this hospital has, as the coordinator may know it."""

from importlib.metadata import version

from fedpath.client.agent.contract import contract_of
from fedpath.client.agent.data import SiteData
from fedpath.client.agent.folders import StageFolders
from fedpath.client.agent.reports import check_enough
from fedpath.core.clinical.standard import ClinicalStatistics, statistics_of
from fedpath.core.cohort.manifest import SPLITS, Cohort
from fedpath.core.config import SiteConfig
from fedpath.core.config.clinical import ClinicalSchema
from fedpath.core.events import EventLog
from fedpath.core.exchange.messages import Description, RunFacts


def describe(facts: RunFacts, folders: StageFolders, data: SiteData, events: EventLog) -> Description:
    """Return how the features of a stage were made, and how many patients and slides there are.

    Raises:
        DataError: a feature file, the manifest or the clinical table is wrong.
        RefusedError: there are fewer training patients than the policy asks for.
    """
    config, cohort = folders.config, data.cohort(facts)
    paths = [folders.features / f"{slide.slide_id}.h5" for slide in cohort.slides]
    contract = contract_of(paths, config.features)
    patients = {split: len(cohort.patients(split)) for split in SPLITS}
    smallest = config.policy.min_patients
    check_enough(patients["train"], site=config.site.name, min_patients=smallest)
    events.emit("described", slides=len(cohort.slides), encoder=contract.encoder)
    reported = {split: count >= smallest for split, count in patients.items()}
    return Description(
        contract=contract,
        patients={split: patients[split] if reported[split] else None for split in SPLITS},
        slides={split: len(cohort.of(split)) if reported[split] else None for split in SPLITS},
        version=version("fedpath"),
        clinical=None if facts.clinical is None else _clinical(config, cohort, facts.clinical, data, events),
    )


def _clinical(
    config: SiteConfig, cohort: Cohort, schema: ClinicalSchema, data: SiteData, events: EventLog
) -> ClinicalStatistics | None:
    """Return what leaves about the training patients' clinical data, and say at the site what does and why."""
    clinical, smallest = data.clinical(schema, cohort), config.policy.min_patients
    records = [clinical.records[patient] for patient in cohort.patients("train") if patient in clinical.records]
    statistics = statistics_of(schema, records, min_patients=smallest)
    told = {} if statistics is None else {name: field.count for name, field in statistics.fields.items()}
    events.emit(
        "clinical_described",
        patients=len(records),
        of=len(cohort.patients("train")),
        told=statistics is not None,
        fields=told,
        held_back=sorted(clinical.fields.keys() - told.keys()),
        min_patients=smallest,
    )
    return statistics
