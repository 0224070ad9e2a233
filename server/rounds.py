"""One run of rounds: training and averaging, the best model by validation, its test, and the goodbye.

A run goes on from where its folder says it stands: a coordinator that was killed or stopped, and is started again, asks
the round that was open once more. The seed of a round decides what each site answers, so the weights at the end are
those of a run that nobody disturbed.
"""

import dataclasses
import threading
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from fedpath.core.config import FederationConfig
from fedpath.core.events import EventLog
from fedpath.core.exchange.checks import Entitled
from fedpath.core.exchange.groups import personal_names, to_arrays
from fedpath.core.exchange.messages import RunFacts, StageFacts
from fedpath.core.exchange.wire import Arrays
from fedpath.core.models.multimodal.parts import MultimodalModel
from fedpath.core.models.own import origin_of
from fedpath.core.models.protocol import BagModel
from fedpath.core.models.registry import fields_read
from fedpath.server.aggregation import Engine, check_installed
from fedpath.server.aggregation.engine import engine_of
from fedpath.server.clinical import Agreement
from fedpath.server.closing import Close, summary_of
from fedpath.server.folder import Closing, Members, RunFolder
from fedpath.server.gather import Gathered, Needs, admit, gather, see_who_is_there, telling_sites
from fedpath.server.sequence import Sequence
from fedpath.server.standing import Best
from fedpath.server.talk import Talk


@dataclass(frozen=True, slots=True)
class Ended:
    """What came out of a run of rounds."""

    summary: dict[str, Any]
    best: Best
    best_model: Arrays
    have: list[str]
    """The sites that said that they have the best model."""


def facts_of(config: FederationConfig, run: str, stage: StageFacts | None = None) -> RunFacts:
    """Return what holds for a run of ``config``."""
    return RunFacts(
        federation=config.federation.name,
        run=run,
        seed=config.federation.seed,
        labels=config.task.labels,
        features=config.features,
        model=config.model,
        package=origin_of(config.model.name),
        clinical=fields_read(config.model.name, config.clinical),
        stage=stage,
        local=config.local.model_copy(update={"learning_rate_scale": {}}),
    )


class FederatedRun:
    """One run of rounds of a federation, or of one stage of its pipeline.

    Args:
        config: federation.toml; for a stage, with the stage's model, training and features in their places.
        run: its name; also that of its folder.
        model: as it is built from the federation's seed; round 1 starts from it. Its weights are gone afterwards.
        talk: the conversation with the sites.
        folder: where its records go; where they are already, the run goes on.
        events: where progress is reported.
        stop: set it to end the run; everything so far is kept.
        stage: which stage it is, and what it stands on.
        expected: the sites to wait for, where an earlier stage says who they are.
        needs: who can take part, where a stage needs what earlier ones left at the sites.
        more: another stage follows.
        engine: where updates are combined; by default what `[aggregation]` says is there while it runs.
    """

    def __init__(
        self,
        config: FederationConfig,
        run: str,
        model: BagModel,
        talk: Talk,
        folder: RunFolder,
        events: EventLog,
        stop: threading.Event,
        *,
        stage: StageFacts | None = None,
        expected: Collection[str] = (),
        needs: Needs | None = None,
        more: bool = False,
        engine: Engine | None = None,
    ) -> None:
        check_installed(config.aggregation)
        self._engine = engine
        self._config, self._run, self._talk, self._folder = config, run, talk, folder
        self._model, self._events, self._stop = model, events, stop
        self._expected, self._needs, self._more = expected, needs, more
        self._clinical: Agreement | None = None
        self._founders: set[str] = set()
        self._entitled: dict[str, Entitled] = {}
        self._facts = facts_of(config, run, stage)

    def execute(self) -> Ended:
        """Run it from the first site's arrival to the goodbye, or what is left of that.

        Raises:
            FederationError: too few sites joined, or answered in a round; those that are there have been told.
            StoppedError: `stop` was set; likewise.
            DataError: the folder does not hold the models that its records name.
            ConfigError: the engine that combines updates is not there.
        """
        given, settings = self._engine, self._config.aggregation
        with (
            telling_sites(self._facts, self._talk),
            engine_of(settings, self._events, self._stop) if given is None else nullcontext(given) as engine,
        ):
            return self._execute(engine)

    def _execute(self, engine: Engine) -> Ended:
        members, closing = self._folder.members(), self._folder.closing()
        gathered = self._gather(members, closing)
        self._founders = set(gathered.accepted if members.founders is None else members.founders)
        self._agree(gathered)
        self._take_part(gathered)
        initial = self._initial()
        standing = self._folder.standing(initial, self._tell_of_damage, run=self._run)
        rounds = self._config.training.rounds
        if standing.round > 0:
            self._events.emit("resumed", run=self._run, round=standing.round, rounds=rounds)
        sequence = Sequence(
            self._config, self._facts, self._talk, self._folder, initial, self._events, self._stop, engine
        )
        del initial
        while standing.round < rounds:
            if standing.round > 0:
                self._take_newcomers_in(gathered)
            sequence.do(standing, sorted(gathered.accepted), self._entitled)
        sequence.let_go()
        sites, closing = sorted(gathered.accepted), self._folder.closing()
        close = Close(self._config, self._facts, self._talk, self._folder, self._events, self._stop)
        closing = close.figures(standing, sites)
        have = close.say_goodbye(standing, sites, more=self._more)
        clinical = None if self._clinical is None else self._clinical.record()
        summary = summary_of(self._facts, self._model, standing, closing, gathered.refused, clinical)
        # Last, for it is the mark that nothing is left to be done.
        self._folder.keep_summary(summary)
        best = standing.best
        self._events.emit("run_finished", run=self._run, best_round=best.round, auc=best.auc)
        return Ended(summary, best, self._folder.best_model(standing), have)

    def _initial(self) -> Arrays:
        """Return the model before round 1, as far as it travels; from here on its weights are not held twice."""
        personal = personal_names(self._model, self._config.local.personal)
        whole = to_arrays(self._model)
        rest = {name: array for name, array in whole.items() if name in personal}
        self._folder = dataclasses.replace(self._folder, rest=rest)
        self._model.to("meta")
        return {name: array for name, array in whole.items() if name not in personal}

    def _tell_of_damage(self, damaged: int, back_to: int, what: str) -> None:
        self._events.emit("checkpoint_damaged", run=self._run, round=damaged, back_to=back_to, what=what)

    def _gather(self, members: Members, closing: Closing | None) -> Gathered:
        """Return who takes part: those that did, in a run that goes on."""
        gathered = Gathered(dict(members.sites), dict(members.refused))
        if closing is not None and closing.test is not None and not self._more:
            # Only the goodbye is left, and sites that have heard it are gone.
            see_who_is_there(gathered, self._config, self._talk, self._stop)
            return gathered
        gather(
            gathered,
            self._config,
            self._facts,
            self._talk,
            self._events,
            self._stop,
            expected=self._expected,
            needs=self._needs,
        )
        return gathered

    def _agree(self, gathered: Gathered) -> None:
        """Put what the sites agree on about clinical data into the model, where it reads any."""
        if self._facts.clinical is None or not isinstance(self._model, MultimodalModel):
            return
        self._clinical = agreement = Agreement.of(
            self._facts.clinical,
            # As it was agreed on before round 1, also in a run that goes on: what came later does not change it.
            {site: gathered.accepted[site] for site in sorted(self._founders & gathered.accepted.keys())},
        )
        self._model.use_standard(agreement.standard)
        self._events.emit("clinical_agreed", **agreement.record())

    def _say_what_latecomers_bring(self, gathered: Gathered, early: set[str]) -> None:
        """Tell whether the clinical data of sites that came later count; what was agreed on stays as it is."""
        for site in sorted(gathered.accepted.keys() - early):
            description = gathered.accepted[site]
            if self._clinical is not None and description.clinical is not None:
                counted = self._clinical.counted(description)
                self._events.emit("clinical_late", site=site, patients=description.clinical.patients, counted=counted)

    def _take_newcomers_in(self, gathered: Gathered) -> None:
        """Ask the sites that are there and take no part yet."""
        early = set(gathered.accepted)
        if admit(gathered, self._config, self._facts, self._talk, self._events, self._stop, needs=self._needs):
            self._say_what_latecomers_bring(gathered, early)
            self._take_part(gathered)

    def _take_part(self, gathered: Gathered) -> None:
        """Note what each site that takes part may send, and keep who does."""
        self._entitled = {
            site: Entitled(
                description.patients["train"] or 0,
                0 if self._clinical is None else self._clinical.counted(description),
                clinical_groups=self._model.clinical_groups,
                agreed_groups=self._model.agreed_groups,
            )
            for site, description in gathered.accepted.items()
        }
        clinical = None if self._clinical is None else self._clinical.record()
        self._folder.start(self._run, gathered.accepted, gathered.refused, clinical, self._founders)
