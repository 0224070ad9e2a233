"""Carry out the coordinator's orders on this hospital's data: describe, train, evaluate, encode, keep what was made.

Knows nothing of Flower, and of a stage only its `Work`. Each order is checked against the hospital's policy first, and
carries all it needs: a worker that is killed and started again answers the same order with the same bits.
"""

import hashlib
from functools import partial
from typing import Any

import torch

from fedpath.client.agent.data import SiteData, in_order
from fedpath.client.agent.describe import describe
from fedpath.client.agent.encode_work import encode_again
from fedpath.client.agent.folders import StageFolders
from fedpath.client.agent.memory import SiteMemory
from fedpath.client.agent.reports import check_enough, figures, groups_that_may_leave, without_clinical
from fedpath.client.agent.tune_work import TuneWork
from fedpath.client.agent.work import BagWork, Fill, Work
from fedpath.client.policy import check_order
from fedpath.core.cohort.examples import Example
from fedpath.core.config import SiteConfig
from fedpath.core.errors import RefusedError
from fedpath.core.events import EventLog
from fedpath.core.exchange.encoding import write_update
from fedpath.core.exchange.groups import group_of, load_arrays, to_arrays
from fedpath.core.exchange.messages import (
    Answer,
    Describe,
    Description,
    Encode,
    Encoded,
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
from fedpath.core.models.protocol import BagModel
from fedpath.core.training.device import choose_device
from fedpath.core.training.engines.base import EngineSettings
from fedpath.core.training.engines.choose import engine_settings
from fedpath.core.training.loop import TrainResult, train
from fedpath.core.training.precision import Precision, choose_precision
from fedpath.core.training.settings import TrainSettings


class Worker:
    """One hospital's side of a run.

    Args:
        config: site.toml.
        federation: the federation the kit is for.
        events: where progress is reported; it stays at the site.
    """

    def __init__(self, config: SiteConfig, *, federation: str, events: EventLog) -> None:
        self._config, self._federation, self._events = config, federation, events
        self._data = SiteData(config)
        self._doing: tuple[RunFacts, Work] | None = None
        self._fields: str | None = None
        self._device = choose_device(config.compute.device)
        self._precision = choose_precision(config.compute.precision, self._device)
        # Before anything is promised: DeepSpeed may be asked for and not be there.
        self._engine = engine_settings(config.compute, self._device)
        # What every report to the coordinator is held against.
        self._terms: dict[str, Any] = {"site": config.site.name, "min_patients": config.policy.min_patients}
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
            case Encode():
                return self._encode(order), {}
            case Finish():
                return self._finish(order, arrays), {}
            case Refuse():
                self._events.emit("refused", reason=order.reason)
                return Receipt(), {}

    def _describe(self, facts: RunFacts) -> Description:
        work = self._work(facts)
        work.check()
        return describe(facts, StageFolders(self._config, facts), self._data, self._events)

    def _check_fields(self, facts: RunFacts) -> None:
        """Refuse other clinical fields than the first order had: two sets of sums could tell a patient's value."""
        if facts.clinical is None:
            return
        self._fields = self._fields or in_order(facts.clinical)
        if self._fields != in_order(facts.clinical):
            raise RefusedError(
                f"site {self._config.site.name} refuses: the clinical fields have changed during the run",
                remedy="start a new run after changing [clinical] in federation.toml",
            )

    def _train(self, order: Train, arrays: Arrays) -> tuple[Update, Arrays]:
        _check_base(arrays, order.base)
        work, fill = self._work(order.facts), partial(load_arrays, arrays=arrays)
        examples = work.examples("train")
        check_enough(len({example.patient_id for example in examples}), **self._terms)
        examples, validation = self._validate(order, work, fill, examples)
        model, result = work.train(order.learning_rate, fill, partial(self._train_model, order, examples))
        trained = to_arrays(model, result.patients_by_group)
        patients = groups_that_may_leave(trained, arrays, result.patients_by_group, **self._terms)
        self._events.emit("trained", round=order.round, loss=result.loss, seconds=result.seconds, patients=patients)
        update = Update(
            round=order.round,
            base=order.base,
            patients=patients,
            training_loss=result.loss,
            validation=validation,
            seconds=result.seconds,
        )
        leaving = {name: array for name, array in trained.items() if group_of(name) in patients}
        # On disk before the update leaves: once that counts, the next one goes on from what was left out of it.
        memory = SiteMemory(StageFolders(self._config, order.facts).own)
        seed, residual = _seed(order.facts, self._config.site.name, order.round), memory.load(order.counted)
        written = write_update(leaving, arrays, order.exchange, residual=residual, seed=seed)
        if order.exchange.encoding != "float32":
            memory.keep(order.round, written.residual, counted=order.counted)
        return update, written.arrays

    def _validate(self, order: Train, work: Work, fill: Fill, examples: list[Example]) -> tuple[list[Example], Metrics]:
        """Return the examples that may be trained on, and the figures of the model that came.

        Its copy ends here: none is left on the device beside the one that is trained, for which memory was planned.
        """
        model = work.build(order.learning_rate)
        fill(model)
        examples = self._without_few_records(model, examples, order.round)
        validation, routes = figures(model, work.examples("validation"), self._device, **self._terms)
        self._events.emit("validated", round=order.round - 1, **validation.model_dump(), routes=routes)
        return examples, validation

    def _train_model(
        self, order: Train, examples: list[Example], model: BagModel, precision: Precision, engine: EngineSettings
    ) -> TrainResult:
        """Train a model as the order asks."""
        settings = TrainSettings(
            epochs=order.local_epochs,
            learning_rate=order.learning_rate,
            weight_decay=order.weight_decay,
            class_weights=order.class_weights,
            accumulate_bags=order.accumulate_bags,
            precision=precision,
        )

        def progress(done: int, total: int, loss: float) -> None:
            if done == total or done % max(1, total // 10) == 0:
                self._events.emit("step", round=order.round, done=done, total=total, loss=loss)

        return train(
            model,
            examples,
            settings,
            seed=_seed(order.facts, self._config.site.name, order.round),
            span=((order.round - 1) / order.rounds, order.round / order.rounds),
            device=self._device,
            progress=progress,
            engine=engine,
        )

    def _without_few_records(self, model: BagModel, examples: list[Example], round_: int) -> list[Example]:
        """Return the examples without clinical data, where so few patients have any that their number may not leave."""
        patients = {example.patient_id for example in examples if model.record_of(example.bag) is not None}
        smallest = self._config.policy.min_patients
        if not 0 < len(patients) < smallest:
            return examples
        self._events.emit("clinical_not_trained", round=round_, patients=len(patients), min_patients=smallest)
        return without_clinical(examples)

    def _evaluate(self, order: Evaluate, arrays: Arrays) -> Evaluation:
        work = self._work(order.facts)
        model = _filled(work, arrays, order.base)
        metrics, routes = figures(model, work.examples(order.split), self._device, **self._terms)
        self._events.emit("evaluated", round=order.round, split=order.split, **metrics.model_dump(), routes=routes)
        return Evaluation(round=order.round, base=order.base, metrics=metrics)

    def _encode(self, order: Encode) -> Encoded:
        facts = order.facts
        if facts.stage is None or facts.stage.kind != "encode":
            raise _not_of_stage("encode", facts)
        return encode_again(facts, StageFolders(self._config, facts), self._data, self._device, self._events)

    def _finish(self, order: Finish, arrays: Arrays) -> Receipt:
        work = self._work(order.facts)
        kept = work.keep(_filled(work, arrays, order.base), order.best_round)
        stage = None if order.facts.stage is None else order.facts.stage.name
        self._events.emit("finished", model=str(kept), best_round=order.best_round, stage=stage, more=order.more)
        return Receipt()

    def _work(self, facts: RunFacts) -> Work:
        """Return what the stage of an order trains."""
        if self._doing is None or self._doing[0] != facts:
            self._doing = (facts, self._new_work(facts, StageFolders(self._config, facts)))
        return self._doing[1]

    def _new_work(self, facts: RunFacts, folders: StageFolders) -> Work:
        match None if facts.stage is None else facts.stage.kind:
            case "encode":
                raise _not_of_stage("train or describe", facts)
            case "fine-tune":
                return TuneWork(facts, folders, self._data, self._device, self._precision, self._events)
            case _:
                return BagWork(facts, folders, self._data, self._precision, self._engine)


def _not_of_stage(what: str, facts: RunFacts) -> RefusedError:
    kind = "train" if facts.stage is None else facts.stage.kind
    return RefusedError(
        f"an order to {what} came in a stage of kind '{kind}'", remedy="run the same version of fedpath on both sides"
    )


_ANY_RATE = 1.0
"""Of models that are not going to be trained."""


def _filled(work: Work, arrays: Arrays, base: str) -> BagModel:
    """Build a stage's model and fill it with the arrays that came."""
    _check_base(arrays, base)
    model = work.build(_ANY_RATE)
    load_arrays(model, arrays)
    return model


def _check_base(arrays: Arrays, base: str) -> None:
    if hash_arrays(arrays) != base:
        raise RefusedError(
            "the model that came does not have the hash the order states",
            remedy="the coordinator's log tells more; start it again",
        )


def _seed(facts: RunFacts, site: str, round_: int) -> int:
    """Return the seed of one site's training in one round: different for each, the same whenever it is repeated."""
    place = site if facts.stage is None else f"{facts.stage.name}/{site}"
    return int.from_bytes(hashlib.sha256(f"{facts.seed}/{place}/{round_}".encode()).digest()[:7])
