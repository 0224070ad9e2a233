"""Carry out the coordinator's orders on this hospital's data: describe, train, evaluate, keep the final model.

Knows nothing of Flower. Each order is checked against the hospital's policy first, and carries all it needs: a worker
that is killed and started again answers the same order with the same bits.
"""

import dataclasses
import hashlib
from collections import Counter
from importlib.metadata import version

import numpy as np
import torch

from fedpath.client.agent.contract import contract_of
from fedpath.client.policy import check_order
from fedpath.core.clinical.standard import ClinicalStatistics, statistics_of
from fedpath.core.cohort.clinical.join import SiteClinical, load_clinical
from fedpath.core.cohort.examples import Example, load_examples, load_site_cohort
from fedpath.core.cohort.manifest import SPLITS, Cohort, Split
from fedpath.core.config import SiteConfig
from fedpath.core.config.clinical import ClinicalSchema
from fedpath.core.errors import RefusedError
from fedpath.core.events import EventLog
from fedpath.core.exchange.groups import group_of, load_arrays, to_arrays
from fedpath.core.exchange.messages import (
    Answer,
    Describe,
    Description,
    Evaluate,
    Evaluation,
    Finish,
    Metrics,
    Order,
    Receipt,
    Refuse,
    RunFacts,
    Train,
    Update,
)
from fedpath.core.exchange.wire import Arrays, hash_arrays
from fedpath.core.models.checkpoint import model_metadata, save_model
from fedpath.core.models.protocol import BagModel
from fedpath.core.models.registry import build_model
from fedpath.core.training.device import choose_device
from fedpath.core.training.evaluation import NotFiniteError, examine
from fedpath.core.training.loop import TrainSettings, train
from fedpath.core.training.precision import choose_precision

FINAL_MODEL = "federated.safetensors"


class Worker:
    """One hospital's side of a run.

    Args:
        config: site.toml.
        federation: the federation the kit is for.
        events: where progress is reported; it stays at the site.
    """

    def __init__(self, config: SiteConfig, *, federation: str, events: EventLog) -> None:
        self._config, self._federation, self._events = config, federation, events
        self._examples: dict[Split, list[Example]] = {}
        self._loaded_for: tuple[tuple[str, ...], int, str | None] = ((), 0, None)
        self._fields: str | None = None
        self._tabled: tuple[tuple[str, Cohort], SiteClinical] | None = None
        self._device = choose_device(config.compute.device)
        self._precision = choose_precision(config.compute.precision, self._device)
        torch.set_num_threads(config.compute.threads)

    def carry_out(self, order: Order, arrays: Arrays) -> tuple[Answer, Arrays]:
        """Do what an order asks and return the answer with its arrays.

        Raises:
            RefusedError: the hospital's policy, or the order itself, does not allow it.
            DataError: this hospital's data does not allow it.
        """
        check_order(self._config.policy, order, site=self._config.site.name, federation=self._federation)
        self._check_fields(order.facts)
        match order:
            case Describe():
                return self._describe(order.facts), {}
            case Train():
                return self._train(order, arrays)
            case Evaluate():
                return self._evaluate(order, arrays), {}
            case Finish():
                return self._finish(order, arrays), {}
            case Refuse():
                self._events.emit("refused", reason=order.reason)
                return Receipt(), {}

    def _describe(self, facts: RunFacts) -> Description:
        cohort = self._cohort(facts)
        paths = [self._config.data.features / f"{slide.slide_id}.h5" for slide in cohort.slides]
        contract = contract_of(paths, self._config.features)
        patients = {split: len(cohort.patients(split)) for split in SPLITS}
        self._check_enough(patients["train"])
        self._events.emit("described", slides=len(cohort.slides), encoder=contract.encoder)
        reported = {split: count >= self._config.policy.min_patients for split, count in patients.items()}
        return Description(
            contract=contract,
            patients={split: patients[split] if reported[split] else None for split in SPLITS},
            slides={split: len(cohort.of(split)) if reported[split] else None for split in SPLITS},
            version=version("fedpath"),
            clinical=None if facts.clinical is None else self._describe_clinical(cohort, facts.clinical),
        )

    def _describe_clinical(self, cohort: Cohort, schema: ClinicalSchema) -> ClinicalStatistics | None:
        """Return what leaves about the training patients' clinical data, and say at the site what does and why."""
        clinical = self._table(schema, cohort)
        records = [clinical.records[patient] for patient in cohort.patients("train") if patient in clinical.records]
        statistics = statistics_of(schema, records, min_patients=self._config.policy.min_patients)
        told = {} if statistics is None else {name: field.count for name, field in statistics.fields.items()}
        self._events.emit(
            "clinical_described",
            patients=len(records),
            of=len(cohort.patients("train")),
            told=statistics is not None,
            fields=told,
            held_back=sorted(clinical.fields.keys() - told.keys()),
            min_patients=self._config.policy.min_patients,
        )
        return statistics

    def _check_fields(self, facts: RunFacts) -> None:
        """Refuse other clinical fields than the first order had: two sets of sums could tell a patient's value."""
        if facts.clinical is None:
            return
        self._fields = self._fields or _in_order(facts.clinical)
        if self._fields != _in_order(facts.clinical):
            raise RefusedError(
                f"site {self._config.site.name} refuses: the clinical fields have changed during the run",
                remedy="start a new run after changing [clinical] in federation.toml",
            )

    def _check_enough(self, patients: int) -> None:
        """Refuse to train on fewer patients than the policy asks for: every update states how many there were."""
        if patients < self._config.policy.min_patients:
            raise RefusedError(
                f"site {self._config.site.name} refuses: fewer training patients than its policy asks for",
                remedy="lower policy.min_patients in site.toml, or wait for more patients",
            )

    def _train(self, order: Train, arrays: Arrays) -> tuple[Update, Arrays]:
        examples = self._load("train", order.facts)
        self._check_enough(len({example.patient_id for example in examples}))
        model = self._model(order.facts, arrays, order.base)
        examples = self._without_few_records(model, examples, order.round)
        validation, routes = self._metrics(model, self._load("validation", order.facts))
        self._events.emit("validated", round=order.round - 1, **validation.model_dump(), routes=routes)
        settings = TrainSettings(
            epochs=order.local_epochs,
            learning_rate=order.learning_rate,
            weight_decay=order.weight_decay,
            class_weights=order.class_weights,
            accumulate_bags=order.accumulate_bags,
            precision=self._precision,
        )

        def progress(done: int, total: int, loss: float) -> None:
            if done == total or done % max(1, total // 10) == 0:
                self._events.emit("step", round=order.round, done=done, total=total, loss=loss)

        result = train(
            model,
            examples,
            settings,
            seed=_seed(order.facts.seed, self._config.site.name, order.round),
            span=((order.round - 1) / order.rounds, order.round / order.rounds),
            device=self._device,
            progress=progress,
        )
        trained = to_arrays(model, result.patients_by_group)
        patients = self._that_may_leave(trained, arrays, result.patients_by_group)
        self._events.emit("trained", round=order.round, loss=result.loss, seconds=result.seconds, patients=patients)
        update = Update(
            round=order.round,
            base=order.base,
            patients=patients,
            training_loss=result.loss,
            validation=validation,
            seconds=result.seconds,
        )
        return update, {name: array for name, array in trained.items() if group_of(name) in patients}

    def _without_few_records(self, model: BagModel, examples: list[Example], round_: int) -> list[Example]:
        """Return the examples without clinical data, where so few patients have any that their number may not leave."""
        patients = {example.patient_id for example in examples if model.record_of(example.bag) is not None}
        if not 0 < len(patients) < self._config.policy.min_patients:
            return examples
        self._events.emit(
            "clinical_not_trained",
            round=round_,
            patients=len(patients),
            min_patients=self._config.policy.min_patients,
        )
        return [
            dataclasses.replace(example, bag=dataclasses.replace(example.bag, clinical=None)) for example in examples
        ]

    def _that_may_leave(self, trained: Arrays, came: Arrays, patients_by_group: dict[str, int]) -> dict[str, int]:
        """Return the groups to send, each with the patients that trained it.

        A group that is still as it came, such as the head of a branch whose loss is switched off, was trained by
        nobody; one that fewer patients trained than the policy lets the hospital state stays here.
        """
        changed = {group_of(name) for name, array in trained.items() if not np.array_equal(array, came[name])}
        smallest = self._config.policy.min_patients
        leaving = {group: n for group, n in patients_by_group.items() if group in changed and n >= smallest}
        if not leaving:
            raise RefusedError(
                f"site {self._config.site.name} refuses: training changed nothing that it may send",
                remedy="does the model need clinical data that is not here, or is training.learning_rate in "
                "federation.toml far too small?",
            )
        return leaving

    def _evaluate(self, order: Evaluate, arrays: Arrays) -> Evaluation:
        model = self._model(order.facts, arrays, order.base)
        metrics, routes = self._metrics(model, self._load(order.split, order.facts))
        self._events.emit("evaluated", round=order.round, split=order.split, **metrics.model_dump(), routes=routes)
        return Evaluation(round=order.round, base=order.base, metrics=metrics)

    def _finish(self, order: Finish, arrays: Arrays) -> Receipt:
        model = self._model(order.facts, arrays, order.base)
        path = self._config.state / order.facts.run / FINAL_MODEL
        facts = order.facts
        metadata = model_metadata(facts.federation, facts.model, facts.features, facts.labels, facts.clinical)
        save_model(path, model.state_dict(), metadata | {"run": facts.run, "round": str(order.best_round)})
        self._events.emit("finished", model=str(path), best_round=order.best_round)
        return Receipt()

    def _model(self, facts: RunFacts, arrays: Arrays, base: str) -> BagModel:
        """Build the run's model and fill it with the arrays that came."""
        if hash_arrays(arrays) != base:
            raise RefusedError(
                "the model that came does not have the hash the order states",
                remedy="the coordinator's log tells more; start it again",
            )
        model = build_model(
            facts.model.name,
            width=facts.features.width,
            n_classes=len(facts.labels),
            options=facts.model.options,
            seed=facts.seed,
            clinical=facts.clinical,
        )
        load_arrays(model, arrays)
        return model

    def _metrics(self, model: BagModel, examples: list[Example]) -> tuple[Metrics, dict[str, int]]:
        """Evaluate; figures over fewer patients than the policy's minimum are held back.

        Returns:
            What may leave; and how many patients went by which of the model's branches, which stays here.
        """
        patients = len({example.patient_id for example in examples})
        if patients < self._config.policy.min_patients or not examples:
            return Metrics(), {}
        try:
            examined = examine(model, examples, self._device)
        except NotFiniteError:
            raise RefusedError(
                f"site {self._config.site.name}: the model that came gives no finite figures",
                remedy="lower training.learning_rate or set aggregation.max_update_norm in federation.toml",
            ) from None
        went = {example.patient_id: route for example, route in zip(examples, examined.routes, strict=True)}
        routes: Counter[str] = Counter(route for route in went.values() if route is not None)
        return Metrics(**dataclasses.asdict(examined.metrics)), dict(routes)

    def _cohort(self, facts: RunFacts) -> Cohort:
        return load_site_cohort(self._config, facts.labels)

    def _load(self, split: Split, facts: RunFacts) -> list[Example]:
        """Load a split's bags once a run."""
        fields = None if facts.clinical is None else _in_order(facts.clinical)
        wanted = (tuple(facts.labels), facts.features.width, fields)
        if self._loaded_for != wanted:
            self._examples, self._loaded_for = {}, wanted
        if split not in self._examples:
            cohort, width, records = self._cohort(facts), facts.features.width, None
            if facts.clinical is not None:
                records = self._table(facts.clinical, cohort).records
            self._examples[split] = load_examples(
                cohort, self._config.data.features, split, width=width, records=records
            )
        return self._examples[split]

    def _table(self, schema: ClinicalSchema, cohort: Cohort) -> SiteClinical:
        """Read the clinical table, once for a cohort: the splits of a run come from one state of it."""
        wanted = (_in_order(schema), cohort)
        if self._tabled is None or self._tabled[0] != wanted:
            self._tabled = (wanted, load_clinical(self._config, schema, cohort))
        return self._tabled[1]


def _in_order(schema: ClinicalSchema) -> str:
    """Return the fields as text that differs in their order too: it is the order of the entries of a record."""
    return schema.model_dump_json()


def _seed(seed: int, site: str, round_: int) -> int:
    """Return the seed of one site's training in one round: different for each, the same whenever it is repeated."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{site}/{round_}".encode()).digest()[:7])
