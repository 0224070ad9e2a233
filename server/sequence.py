"""The rounds of a run, one after the other: what each asks, how its updates become the next model, what is kept."""

import threading
import time
from collections.abc import Collection, Mapping

from fedpath.core.config import FederationConfig
from fedpath.core.events import EventLog
from fedpath.core.exchange.checks import Entitled, Expected
from fedpath.core.exchange.groups import CONTROL
from fedpath.core.exchange.messages import RunFacts, Train
from fedpath.core.exchange.wire import Arrays, hash_arrays
from fedpath.server.aggregation import Engine, LocalPasses, combiner
from fedpath.server.control import no_control, sites_by_group, step_control
from fedpath.server.deadline import deadline_s
from fedpath.server.folder import RunFolder
from fedpath.server.optimizers import server_optimizer
from fedpath.server.records import RoundManifest, SiteRound
from fedpath.server.round import Base, Heard, Pending, Plan, Round
from fedpath.server.spool import Spool
from fedpath.server.standing import Standing, weighted
from fedpath.server.talk import Talk


class Sequence:
    """Does rounds.

    Args:
        config: of the run.
        facts: of the run.
        talk: the conversation with the sites.
        folder: where the records go.
        initial: the model before round 1, as far as it travels.
        events: where progress is reported.
        stop: set it to end the run; everything so far is kept.
        engine: where updates are combined.
    """

    def __init__(
        self,
        config: FederationConfig,
        facts: RunFacts,
        talk: Talk,
        folder: RunFolder,
        initial: Arrays,
        events: EventLog,
        stop: threading.Event,
        engine: Engine = LocalPasses,
    ) -> None:
        self._config, self._facts, self._talk, self._folder = config, facts, talk, folder
        self._engine = engine
        self._events, self._stop = events, stop
        self._shapes = {name: array.shape for name, array in initial.items()}
        self._base_of_round_1 = hash_arrays(initial)
        self._at_work: dict[str, Pending] = {}
        self._away: dict[str, float] = {}

    def do(self, standing: Standing, sites: Collection[str], entitled: Mapping[str, Entitled]) -> None:
        """Do the round after ``standing``, or what is left of it, and move ``standing`` on.

        Raises:
            FederationError: too few sites answered.
            StoppedError: `stop` was set.
        """
        round_, started = standing.round + 1, time.monotonic()
        journal, spool = self._folder.journal(round_), self._folder.spool(round_)
        plan = self._plan(round_, standing, entitled)
        if journal.started_from() not in (None, plan.base.hash):  # of a model that was set aside since
            journal.forget()
            spool.clear()
        if journal.replaces_damaged:
            self._events.emit("journal_damaged", round=round_)
        self._events.emit(
            "round_started",
            round=round_,
            rounds=self._config.training.rounds,
            sites=sorted(sites),
            deadline_s=plan.deadline_s,
            quorum=plan.quorum,
        )
        adding = combiner(standing.model, self._config.aggregation, self._engine)
        heard = Round(
            plan,
            self._config,
            self._talk,
            journal,
            spool,
            adding,
            self._at_work,
            self._away,
            self._events,
            self._stop,
        ).hear(sites)
        began = time.monotonic()
        self._events.emit("combining", round=round_)
        combined = adding.result()
        model, state = self._step(standing, combined.arrays, heard, spool, entitled)
        heard.aggregation_s += time.monotonic() - began
        manifest = self._manifest(round_, plan, heard, model, state, time.monotonic() - started)
        manifest = manifest.model_copy(update={"patients": _rounded(combined.patients), "chosen": combined.chosen})
        self._events.emit("keeping", round=round_)
        self._folder.keep_round(manifest, standing, model, state)
        self._events.emit("checkpoint_kept", round=round_)
        if combined.too_few:
            needed = self._config.aggregation.updates_needed
            self._events.emit("groups_left", round=round_, groups=combined.too_few, needed=needed)
        judged = {"round": round_ - 1, "auc": manifest.validation_auc, "loss": manifest.validation_loss}
        self._events.emit("judged", **judged, best_round=standing.best.round)
        self._events.emit(
            "round_finished",
            round=round_,
            seconds=manifest.seconds,
            aggregation_s=manifest.aggregation_s,
            training_loss=_training_loss(manifest),
            answered=manifest.counted(),
            contributed=sorted(manifest.contributed()),
        )

    def let_go(self) -> None:
        """Forget the sites that are still at work: the run is over."""
        for pending in self._at_work.values():
            self._talk.drop(pending.asked)
        self._at_work.clear()

    def _plan(self, round_: int, standing: Standing, entitled: Mapping[str, Entitled]) -> Plan:
        config = self._config
        # The model is the one that the last manifest names: it was made, or read and compared, so.
        ends_with = standing.manifests[-1].result if standing.manifests else self._base_of_round_1
        base = Base(ends_with, standing.model)
        bases = {manifest.round: manifest.base for manifest in standing.manifests} | {round_: base.hash}
        scaffold = config.local.method == "scaffold"
        control = _control_of(standing) if scaffold else {}
        hash_of_control = hash_arrays(control) if scaffold else None

        def order(site: str) -> Train:
            training, scale = config.training, config.local.learning_rate_scale.get(site, 1.0)
            return Train(
                facts=self._facts,
                round=round_,
                rounds=training.rounds,
                base=base.hash,
                local_epochs=training.local_epochs,
                learning_rate=training.learning_rate * scale,
                weight_decay=training.weight_decay,
                class_weights=training.class_weights,
                accumulate_bags=training.accumulate_bags,
                exchange=config.exchange,
                counted=standing.last_counted(site),
                best=standing.last_counted(site, standing.best.round),
                control=hash_of_control,
            )

        def expected(of_round: int) -> Expected:
            return Expected(of_round, bases[of_round], self._shapes, config.exchange, control=scaffold)

        def earlier(of_round: int) -> Base | None:
            model = self._folder.models.read(of_round - 1, self._shapes, bases.get(of_round))
            return None if model is None else Base(bases[of_round], model)

        buffered = config.asynchronous
        return Plan(
            round=round_,
            base=base,
            orders=order,
            arrays=standing.model | control,
            expected=expected,
            earlier=earlier,
            entitled=entitled,
            deadline_s=deadline_s(config.deadline, config.server.round_timeout_s, standing.manifests),
            quorum=max(config.min_sites if buffered is None else buffered.buffer, config.aggregation.updates_needed),
            enough=None if buffered is None else buffered.buffer,
            concurrency=None if buffered is None else buffered.concurrency,
        )

    def _step(
        self,
        standing: Standing,
        combined: Arrays,
        heard: Heard,
        spool: Spool,
        entitled: Mapping[str, Entitled],
    ) -> tuple[Arrays, Arrays]:
        """Return the next model and what is carried on with it."""
        optimizer = server_optimizer(self._config.optimizer, standing.model)
        if carried := {name: array for name, array in standing.state.items() if not name.startswith(CONTROL)}:
            optimizer.load(carried)
        model = optimizer.step(standing.model, combined)
        state = optimizer.state()
        if self._config.local.method == "scaffold":
            sites = sites_by_group(entitled, standing.model)
            counted = sorted(site for site, part in heard.parts.items() if part.outcome == "answered")
            state |= step_control(_control_of(standing), (spool.open(site) for site in counted), sites)
        return model, state

    def _manifest(
        self, round_: int, plan: Plan, heard: Heard, model: Arrays, state: Arrays, seconds: float
    ) -> RoundManifest:
        parts: dict[str, SiteRound] = {site: heard.parts[site] for site in sorted(heard.parts)}
        validation = {site: part.validation for site, part in parts.items() if part.validation is not None}
        return RoundManifest(
            round=round_,
            base=plan.base.hash,
            result=hash_arrays(model),
            sites=parts,
            patients={},
            validation_auc=weighted(validation, "auc"),
            validation_loss=weighted(validation, "loss"),
            seconds=seconds,
            aggregation_s=heard.aggregation_s,
            state=hash_arrays(state) if state else None,
            deadline_s=plan.deadline_s,
            run=self._facts.run,
        )


def _training_loss(manifest: RoundManifest) -> float | None:
    """Return the sites' training loss: its mean over those that counted, weighted by the patients trained on."""
    losses = {
        site: (part.training_loss, max(part.patients.values(), default=0))
        for site, part in manifest.sites.items()
        if part.outcome == "answered" and part.training_loss is not None
    }
    patients = sum(count for _, count in losses.values())
    return sum(loss * count for loss, count in losses.values()) / patients if patients else None


def _control_of(standing: Standing) -> Arrays:
    kept = {name: array for name, array in standing.state.items() if name.startswith(CONTROL)}
    return kept or no_control(standing.model)


def _rounded(patients: Mapping[str, float]) -> dict[str, int]:
    """Return the patients counted for each group: whole numbers, but for late updates that count in part."""
    return {group: round(count) for group, count in patients.items()}
