"""One run of rounds: training and averaging, the best model by validation, its test, and the goodbye.

A run goes on from where its folder says it stands: a coordinator that was killed or stopped, and is started again, asks
the round that was open once more. The seed of a round decides what each site answers, so the weights at the end are
those of a run that nobody disturbed.
"""

import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

from fedpath.core.config import FederationConfig
from fedpath.core.errors import FederationError, RefusedError
from fedpath.core.events import EventLog
from fedpath.core.exchange.checks import Entitled, check_update
from fedpath.core.exchange.messages import RunFacts, StageFacts, Train, Update
from fedpath.core.exchange.wire import Arrays, hash_arrays
from fedpath.core.models.multimodal.parts import MultimodalModel
from fedpath.core.models.own import origin_of
from fedpath.core.models.protocol import BagModel
from fedpath.core.models.registry import fields_read
from fedpath.server.aggregation import GroupMean
from fedpath.server.clinical import Agreement
from fedpath.server.closing import Close, summary_of
from fedpath.server.folder import Closing, Members, RunFolder
from fedpath.server.gather import Gathered, Needs, admit, gather, see_who_is_there, telling_sites
from fedpath.server.records import RoundManifest, SiteRound
from fedpath.server.standing import Best, Standing, weighted
from fedpath.server.talk import Reply, Silence, Talk, ask


@dataclass(frozen=True, slots=True)
class Ended:
    """What came out of a run of rounds."""

    summary: dict[str, Any]
    best: Best
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
    )


class FederatedRun:
    """One run of rounds of a federation, or of one stage of its pipeline.

    Args:
        config: federation.toml; for a stage, with the stage's model, training and features in their places.
        run: its name; also that of its folder.
        model: as it is built from the federation's seed; round 1 starts from it.
        talk: the conversation with the sites.
        folder: where its records go; where they are already, the run goes on.
        events: where progress is reported.
        stop: set it to end the run; everything so far is kept.
        stage: which stage it is, and what it stands on.
        expected: the sites to wait for, where an earlier stage says who they are.
        needs: who can take part, where a stage needs what earlier ones left at the sites.
        more: another stage follows.
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
    ) -> None:
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
        """
        with telling_sites(self._facts, self._talk):
            return self._execute()

    def _execute(self) -> Ended:
        members, closing = self._folder.members(), self._folder.closing()
        gathered = self._gather(members, closing)
        self._founders = set(gathered.accepted if members.founders is None else members.founders)
        self._agree(gathered)
        self._take_part(gathered)
        standing = self._folder.standing(self._model)
        rounds = self._config.training.rounds
        if standing.round > 0:
            self._events.emit("resumed", run=self._run, round=standing.round, rounds=rounds)
        for round_ in range(standing.round + 1, rounds + 1):
            if round_ > 1:
                self._take_newcomers_in(gathered)
            self._round(round_, standing, sorted(gathered.accepted))
        sites = sorted(gathered.accepted)
        close = Close(self._config, self._facts, self._talk, self._folder, self._events, self._stop)
        closing = close.figures(standing, sites)
        have = close.say_goodbye(standing, sites, more=self._more)
        clinical = None if self._clinical is None else self._clinical.record()
        summary = summary_of(self._facts, self._model, standing, closing, gathered.refused, clinical)
        # Last, for it is the mark that nothing is left to be done.
        self._folder.keep_summary(summary)
        best = standing.best
        self._events.emit("run_finished", run=self._run, best_round=best.round, auc=best.auc)
        return Ended(summary, best, have)

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

    def _round(self, round_: int, standing: Standing, sites: list[str]) -> None:
        """Send the model, take the updates in, make their mean the model, and keep all of it."""
        model = standing.model
        started, base = time.monotonic(), hash_arrays(model)
        config = self._config.training
        order = Train(
            facts=self._facts,
            round=round_,
            rounds=config.rounds,
            base=base,
            local_epochs=config.local_epochs,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            class_weights=config.class_weights,
            accumulate_bags=config.accumulate_bags,
        )
        self._events.emit("round_started", round=round_, rounds=config.rounds, sites=sites)
        mean, aggregation_s = GroupMean(model), 0.0
        parts: dict[str, SiteRound] = {}
        answered = ask(self._talk, sites, order, model, self._config.server.round_timeout_s, self._stop)
        for reply in sorted(answered, key=lambda reply: reply.site):
            began = time.monotonic()
            parts[reply.site] = self._take_in(reply, round_, base, model, mean)
            aggregation_s += time.monotonic() - began
            self._report(round_, reply.site, parts[reply.site])
        self._check_quorum(round_, parts)
        began = time.monotonic()
        result, patients = mean.result()
        aggregation_s += time.monotonic() - began
        validation = {site: part.validation for site, part in parts.items() if part.validation is not None}
        manifest = RoundManifest(
            round=round_,
            base=base,
            result=hash_arrays(result),
            sites=parts,
            patients=patients,
            validation_auc=weighted(validation, "auc"),
            validation_loss=weighted(validation, "loss"),
            seconds=time.monotonic() - started,
            aggregation_s=aggregation_s,
        )
        better = standing.advance(manifest, result)
        self._folder.keep_round(manifest, result, better=better)
        auc, loss = manifest.validation_auc, manifest.validation_loss
        self._events.emit("judged", round=round_ - 1, auc=auc, loss=loss, best_round=standing.best.round)
        self._events.emit("round_finished", round=round_, seconds=manifest.seconds, answered=manifest.counted())

    def _check_quorum(self, round_: int, parts: dict[str, SiteRound]) -> None:
        """Raise FederationError when too few sites' updates count."""
        counted = sum(part.outcome == "answered" for part in parts.values())
        if counted < self._config.min_sites:
            reasons = "; ".join(f"{site}: {part.reason}" for site, part in parts.items() if part.reason)
            kept = f"the model of round {round_ - 1} is kept" if round_ > 1 else "no model yet"
            raise FederationError(
                f"round {round_}: {counted} of {self._config.min_sites} sites gave a usable update ({reasons})",
                remedy=f"mend what is said there, or lower server.min_sites; {kept}, the same command goes on there",
            )

    def _take_in(self, reply: Reply, round_: int, base: str, model: Arrays, mean: GroupMean) -> SiteRound:
        """Check one reply, add it to the mean if it counts, and return what is written down about it."""
        part = partial(SiteRound, sent_bytes=reply.sent_bytes, received_bytes=reply.received_bytes)
        match reply.answer:
            case Update() as update:
                try:
                    check_update(
                        reply.site,
                        update,
                        reply.arrays,
                        reference=model,
                        round_=round_,
                        base=base,
                        entitled=self._entitled[reply.site],
                        max_norm=self._config.aggregation.max_update_norm,
                    )
                except RefusedError as error:
                    return part(outcome="refused", reason=error.message)
                mean.add(reply.arrays, update.patients)
                return part(
                    outcome="answered",
                    patients=update.patients,
                    training_loss=update.training_loss,
                    training_s=update.seconds,
                    validation=update.validation,
                )
            case Silence(late=late):
                return part(outcome="late" if late else "lost", reason=reply.instead)
            case _:
                return part(outcome="refused", reason=reply.instead)

    def _report(self, round_: int, site: str, part: SiteRound) -> None:
        validation = part.validation
        self._events.emit(
            "site_" + part.outcome,
            round=round_,
            site=site,
            reason=part.reason,
            training_loss=part.training_loss,
            validation_auc=validation.auc if validation is not None else None,
            sent_bytes=part.sent_bytes,
            received_bytes=part.received_bytes,
        )
