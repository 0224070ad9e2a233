"""Carry out the coordinator's orders on this hospital's data: describe, train, evaluate, encode, keep what was made.

Knows nothing of Flower, and of a stage only its `Work`. Each order is checked against the hospital's policy first, and
carries all it needs: a worker that is killed and started again answers the same order with the same bits.
"""

import hashlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from fedpath.client.agent.carried import Came, came_with, left_by
from fedpath.client.agent.data import SiteData, in_order
from fedpath.client.agent.describe import describe
from fedpath.client.agent.encode_work import encode_again
from fedpath.client.agent.folders import StageFolders
from fedpath.client.agent.memory import SiteMemory
from fedpath.client.agent.reports import check_enough, figures, groups_that_may_leave, without_clinical
from fedpath.client.agent.tune_work import TuneWork
from fedpath.client.agent.work import BagWork, Fill, Work
from fedpath.client.policy import check_order, check_steps
from fedpath.core.cohort.examples import Example
from fedpath.core.config import SiteConfig
from fedpath.core.errors import RefusedError
from fedpath.core.events import EventLog
from fedpath.core.exchange.encoding import write_update
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
from fedpath.core.exchange.wire import Arrays
from fedpath.core.models.protocol import BagModel
from fedpath.core.training.device import choose_device
from fedpath.core.training.engines.base import EngineSettings
from fedpath.core.training.engines.choose import engine_settings
from fedpath.core.training.engines.launch import TrainingProcessError
from fedpath.core.training.loop import TrainResult, train
from fedpath.core.training.order import course
from fedpath.core.training.precision import Precision, choose_precision
from fedpath.core.training.settings import TrainSettings


class Worker:
    """One hospital's side of a run.

    Args:
        config: site.toml.
        federation: the federation the kit is for.
        events: where progress is reported; it stays at the site.
        stays: whether this hospital stays for later runs.
    """

    def __init__(self, config: SiteConfig, *, federation: str, events: EventLog, stays: bool = False) -> None:
        self._config, self._federation, self._events, self._stays = config, federation, events, stays
        self._data = SiteData(config)
        self._doing: dict[str, tuple[RunFacts, Work]] = {}
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
            TrainingProcessError: processes that train were lost, twice; the next order may fare better.
        """
        try:
            check_order(self._config.policy, order, site=self._config.site.name, federation=self._federation)
        except RefusedError as error:
            self._events.emit("order_refused", reason=error.cause, order=order.kind, says=error.message)
            raise
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
                return Receipt(stays=self._stays), {}

    def _begin(self, phase: str) -> None:
        """Say what is done from now on."""
        self._events.emit("phase", phase=phase)

    def _describe(self, facts: RunFacts) -> Description:
        self._begin("describing")
        work = self._work(facts)
        if facts.local.method != "plain" and self._engine.kind != "torch":
            raise RefusedError(
                f"site {self._config.site.name} refuses: local.method = '{facts.local.method}' does not go with its "
                f"compute.engine = '{self._engine.kind}'",
                remedy='set compute.engine = "torch" in site.toml, or local.method = "plain" in federation.toml',
            )
        work.check()
        described = describe(facts, StageFolders(self._config, facts), self._data, self._events)
        limit = self._config.policy.max_parallel_runs
        return described.model_copy(update={"max_parallel_runs": limit})

    def _check_fields(self, facts: RunFacts) -> None:
        """Refuse other clinical fields than the first order had: two sets of sums could tell a patient's value.

        For as long as this agent runs, over all runs: between two of them nobody here is asked.
        """
        if facts.clinical is None:
            return
        self._fields = self._fields or in_order(facts.clinical)
        if self._fields != in_order(facts.clinical):
            raise RefusedError(
                f"site {self._config.site.name} refuses: the clinical fields have changed since it joined",
                remedy="agree on them; it takes part when it joins anew",
            )

    def _train(self, order: Train, arrays: Arrays) -> tuple[Update, Arrays]:
        self._begin("reading")
        came, work = self._came_with(order, arrays), self._work(order.facts)
        examples = work.examples("train")
        self._check_enough(order, examples)
        examples, validation = self._validate(order, work, came.fill, examples)
        self._begin("training")
        trainer = partial(self._train_model, order, came, examples)
        model, result = self._trained(order.round, partial(work.train, order.learning_rate, came.fill, trainer))
        left = left_by(model, result.patients_by_group, result.mean_gradients, came.local)
        patients = groups_that_may_leave(left.trained, came.model, result.patients_by_group, **self._terms)
        self._events.emit(
            "trained",
            round=order.round,
            loss=result.loss,
            seconds=result.seconds,
            steps=result.steps,
            patients=patients,
        )
        update = Update(
            round=order.round,
            base=order.base,
            patients=patients,
            training_loss=result.loss,
            steps=result.steps,
            validation=validation,
            seconds=result.seconds,
        )
        leaving = left.leaving(patients, came)
        written = write_update(leaving, came.model, order.exchange, residual=came.residual, seed=self._seed(order))
        # On disk before the update leaves: once that counts, the next order goes on from here.
        if came.carries:
            kept = left.kept(patients, came) | written.residual
            self._memory(order.facts).keep(order.round, kept, counted=order.counted, best=order.best)
        return update, written.arrays

    def _check_enough(self, order: Train, examples: list[Example]) -> None:
        """Check that as many patients are trained on as the policy asks for, and in no longer a round than it allows.

        Raises:
            RefusedError: they are not.
        """
        check_enough(len({example.patient_id for example in examples}), **self._terms)
        if (steps := order.facts.local.steps) is None:
            return
        check_steps(self._config.policy, steps, len(examples), order.accumulate_bags, site=self._config.site.name)
        if steps * order.accumulate_bags < len(examples):  # not everybody's turn comes
            passes = course(len(examples), self._settings(order, "auto"), seed=self._seed(order))
            used = {examples[index].patient_id for epoch in passes for step in epoch for index in step}
            check_enough(len(used), **self._terms, steps=steps)

    def _trained(
        self, round_: int, attempt: Callable[[], tuple[BagModel, TrainResult]]
    ) -> tuple[BagModel, TrainResult]:
        """Train; once more where a process that trains is lost: what was short of memory then may not be now.

        The same seeds and a model that is built anew: the second attempt gives the bits that the first one would have.
        """
        try:
            return attempt()
        except TrainingProcessError as error:
            self._events.emit("training_lost", round=round_, reason=error.message)
        return attempt()

    def _validate(self, order: Train, work: Work, fill: Fill, examples: list[Example]) -> tuple[list[Example], Metrics]:
        """Return the examples that may be trained on, and the figures of the model that came.

        Its copy ends here: none is left on the device beside the one that is trained, for which memory was planned.
        """
        self._begin("validating")
        model = work.build(order.learning_rate)
        fill(model)
        examples = self._without_few_records(model, examples, order.round)
        validation, routes = figures(model, work.examples("validation"), self._device, **self._terms)
        self._events.emit("validated", round=order.round - 1, **validation.model_dump(), routes=routes)
        return examples, validation

    @staticmethod
    def _settings(order: Train, precision: Precision) -> TrainSettings:
        return TrainSettings(
            epochs=order.local_epochs,
            learning_rate=order.learning_rate,
            weight_decay=order.weight_decay,
            class_weights=order.class_weights,
            accumulate_bags=order.accumulate_bags,
            precision=precision,
            steps=order.facts.local.steps,
        )

    def _seed(self, order: Train) -> int:
        return _seed(order.facts, self._config.site.name, order.round)

    def _train_model(
        self,
        order: Train,
        came: Came,
        examples: list[Example],
        model: BagModel,
        precision: Precision,
        engine: EngineSettings,
    ) -> TrainResult:
        """Train a model as the order asks."""

        told = time.monotonic()

        def progress(done: int, total: int, loss: float) -> None:
            nonlocal told
            if done == total or done % max(1, total // 10) == 0 or time.monotonic() - told > _TELL_EVERY_S:
                told = time.monotonic()
                self._events.emit("step", round=order.round, done=done, total=total, loss=loss)

        try:
            return train(
                model,
                examples,
                self._settings(order, precision),
                seed=self._seed(order),
                span=((order.round - 1) / order.rounds, order.round / order.rounds),
                device=self._device,
                progress=progress,
                engine=engine,
                drift=came.terms(model),
            )
        except torch.OutOfMemoryError:
            # Fine-tuning may go on with less; either way somebody may want to know.
            self._events.emit("out_of_memory", round=order.round)
            raise

    def _without_few_records(self, model: BagModel, examples: list[Example], round_: int) -> list[Example]:
        """Return the examples without clinical data, where so few patients have any that their number may not leave."""
        patients = {example.patient_id for example in examples if model.record_of(example.bag) is not None}
        smallest = self._config.policy.min_patients
        if not 0 < len(patients) < smallest:
            return examples
        self._events.emit("clinical_not_trained", round=round_, patients=len(patients), min_patients=smallest)
        return without_clinical(examples)

    def _evaluate(self, order: Evaluate, arrays: Arrays) -> Evaluation:
        self._begin("evaluating")
        work = self._work(order.facts)
        model = self._filled(work, order, arrays)
        metrics, routes = figures(model, work.examples(order.split), self._device, **self._terms)
        self._events.emit("evaluated", round=order.round, split=order.split, **metrics.model_dump(), routes=routes)
        return Evaluation(round=order.round, base=order.base, metrics=metrics)

    def _encode(self, order: Encode) -> Encoded:
        facts = order.facts
        if facts.stage is None or facts.stage.kind != "encode":
            raise _not_of_stage("encode", facts)
        self._begin("encoding")
        return encode_again(facts, StageFolders(self._config, facts), self._data, self._device, self._events)

    def _finish(self, order: Finish, arrays: Arrays) -> Receipt:
        self._begin("keeping")
        work = self._work(order.facts)
        kept = work.keep(self._filled(work, order, arrays), order.best_round)
        stage = None if order.facts.stage is None else order.facts.stage.name
        self._events.emit("finished", model=str(kept), best_round=order.best_round, stage=stage, more=order.more)
        return Receipt(stays=self._stays)

    def _filled(self, work: Work, order: Evaluate | Finish, arrays: Arrays) -> BagModel:
        """Build a stage's model and fill it with the arrays that came, and with what stays here."""
        came, model = self._came_with(order, arrays), work.build(_ANY_RATE)
        came.fill(model)
        return model

    def _came_with(self, order: Train | Evaluate | Finish, arrays: Arrays) -> Came:
        """Take in what came with an order; where what this hospital kept is gone, it goes on without, and says so."""
        came = came_with(order, arrays, self._memory(order.facts))
        if came.lost:
            self._events.emit("carried_lost", round=order.counted, order=order.kind)
        return came

    def _memory(self, facts: RunFacts) -> SiteMemory:
        return SiteMemory(StageFolders(self._config, facts).own)

    def _work(self, facts: RunFacts) -> Work:
        """Return what the stage of an order trains."""
        facts_and_work = self._doing.pop(facts.run, None)
        if facts_and_work is None or facts_and_work[0] != facts:
            del facts_and_work  # before there is another one: both may be large
            while len(self._doing) >= self._config.policy.max_parallel_runs:
                del self._doing[next(iter(self._doing))]
            facts_and_work = facts, self._new_work(facts, StageFolders(self._config, facts))
        self._doing[facts.run] = facts_and_work  # last: the one that was longest ago is first
        return facts_and_work[1]

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


_TELL_EVERY_S = 10.0
"""Progress of training is told at least so often, and ten times a round."""
_ANY_RATE = 1.0
"""Of models that are not going to be trained."""


def _seed(facts: RunFacts, site: str, round_: int) -> int:
    """Return the seed of one site's training in one round: different for each, the same whenever it is repeated."""
    place = site if facts.stage is None else f"{facts.stage.name}/{site}"
    return int.from_bytes(hashlib.sha256(f"{facts.seed}/{place}/{round_}".encode()).digest()[:7])
