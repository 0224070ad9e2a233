"""The run itself: rounds of training and averaging, the best model by validation, its test, and the goodbye."""

import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from fedpath.core.config import FederationConfig
from fedpath.core.errors import FederationError, RefusedError, StoppedError
from fedpath.core.events import EventLog
from fedpath.core.exchange.checks import Entitled, check_update
from fedpath.core.exchange.groups import to_arrays
from fedpath.core.exchange.messages import Evaluate, Evaluation, Finish, Metrics, Refusal, RunFacts, Train, Update
from fedpath.core.exchange.wire import Arrays, hash_arrays
from fedpath.core.models.multimodal.parts import MultimodalModel
from fedpath.core.models.own import origin_of
from fedpath.core.models.protocol import BagModel
from fedpath.core.models.registry import fields_read
from fedpath.server.aggregation import GroupMean
from fedpath.server.clinical import Agreement
from fedpath.server.conversation import Conversation, Reply, Silence
from fedpath.server.gather import Gathered, admit, dismiss, gather
from fedpath.server.records import RoundManifest, RunFolder, SiteRound

_FAREWELL_S = 60.0


@dataclass(slots=True)
class Best:
    """The trained global model with the highest validation AUC so far, then the lowest loss; the initial one before."""

    arrays: Arrays
    round: int = 0
    auc: float | None = None
    loss: float | None = None

    def beaten_by(self, auc: float | None, loss: float | None) -> bool:
        """Return whether a later model is to be kept instead; where no site can validate, the latest is."""
        blind = (auc, loss, self.auc, self.loss) == (None, None, None, None)
        return self.round == 0 or blind or _merit(auc, loss) > _merit(self.auc, self.loss)


class FederatedRun:
    """One run of a federation.

    Args:
        config: federation.toml.
        run: its name; also that of its folder.
        model: as it is built from the federation's seed; round 1 starts from it.
        talk: the conversation with the sites.
        folder: where its records go.
        events: where progress is reported.
        stop: set it to end the run; everything so far is kept.
    """

    def __init__(
        self,
        config: FederationConfig,
        run: str,
        model: BagModel,
        talk: Conversation,
        folder: RunFolder,
        events: EventLog,
        stop: threading.Event,
    ) -> None:
        self._config, self._run, self._talk, self._folder = config, run, talk, folder
        self._model, self._events, self._stop = model, events, stop
        self._clinical: Agreement | None = None
        self._entitled: dict[str, Entitled] = {}
        self._counted: dict[str, list[int]] = {}
        self._trained: dict[str, dict[str, int]] = {}
        self._facts = RunFacts(
            federation=config.federation.name,
            run=run,
            seed=config.federation.seed,
            labels=config.task.labels,
            features=config.features,
            model=config.model,
            package=origin_of(config.model.name),
            clinical=fields_read(config.model.name, config.clinical),
        )

    def execute(self) -> dict[str, Any]:
        """Run it from the first site's arrival to the goodbye; return the summary.

        Raises:
            FederationError: too few sites joined, or answered in a round; those that are there have been told.
            StoppedError: `stop` was set; likewise.
        """
        try:
            return self._execute()
        except (FederationError, StoppedError) as error:
            dismiss(sorted(self._talk.online()), f"the run has ended early: {error.message}", self._facts, self._talk)
            raise

    def _execute(self) -> dict[str, Any]:
        gathered = gather(self._config, self._facts, self._talk, self._events, self._stop)
        self._agree(gathered)
        self._take_part(gathered)
        model = to_arrays(self._model)
        best = Best(model)
        rounds = self._config.training.rounds
        for round_ in range(1, rounds + 1):
            early = set(gathered.accepted)
            if round_ > 1 and admit(gathered, self._config, self._facts, self._talk, self._events, self._stop):
                self._say_what_latecomers_bring(gathered, early)
                self._take_part(gathered)
            model, manifest = self._round(round_, model, sorted(gathered.accepted), best)
            self._folder.keep_round(manifest)
            self._folder.keep_model("last", model, round_=round_)
        sites = sorted(gathered.accepted)
        validation = self._evaluate(rounds, model, sites, "validation")
        self._judge(rounds, model, validation, best)
        tests = self._evaluate(best.round, best.arrays, sites, "test")
        summary = self._summary(gathered, best, validation, tests)
        self._folder.keep_summary(summary)
        self._say_goodbye(best, sites)
        self._events.emit("run_finished", run=self._run, best_round=best.round, auc=best.auc)
        return summary

    def _agree(self, gathered: Gathered) -> None:
        """Put what the sites agree on about clinical data into the model, where it reads any."""
        if self._facts.clinical is None or not isinstance(self._model, MultimodalModel):
            return
        self._clinical = agreement = Agreement.of(self._facts.clinical, gathered.accepted)
        self._model.use_standard(agreement.standard)
        self._events.emit("clinical_agreed", **agreement.record())

    def _say_what_latecomers_bring(self, gathered: Gathered, early: set[str]) -> None:
        """Tell whether the clinical data of sites that came later count; what was agreed on stays as it is."""
        for site in sorted(gathered.accepted.keys() - early):
            description = gathered.accepted[site]
            if self._clinical is not None and description.clinical is not None:
                counted = self._clinical.counted(description)
                self._events.emit("clinical_late", site=site, patients=description.clinical.patients, counted=counted)

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
        self._folder.start(self._run, gathered.accepted, gathered.refused, self._clinical_record())

    def _round(self, round_: int, model: Arrays, sites: list[str], best: Best) -> tuple[Arrays, RoundManifest]:
        """Send the model, take the updates in, return their mean and the round's manifest."""
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
        for reply in self._talk.ask(sites, order, model, self._config.server.round_timeout_s, self._stop):
            began = time.monotonic()
            parts[reply.site] = self._take_in(reply, round_, base, model, mean)
            aggregation_s += time.monotonic() - began
            self._report(round_, reply.site, parts[reply.site])
        counted = [site for site, part in parts.items() if part.outcome == "answered"]
        if len(counted) < self._config.min_sites:
            reasons = "; ".join(f"{site}: {part.reason}" for site, part in parts.items() if part.reason)
            kept = f"the model of round {round_ - 1} is kept as last.safetensors" if round_ > 1 else "no model yet"
            raise FederationError(
                f"round {round_}: {len(counted)} of {self._config.min_sites} sites gave a usable update ({reasons})",
                remedy=f"mend what is said there, or lower server.min_sites; {kept}",
            )
        for site in counted:
            self._counted.setdefault(site, []).append(round_)
            for group in parts[site].patients:
                self._trained.setdefault(group, {}).setdefault(site, round_)
        began = time.monotonic()
        result, patients = mean.result()
        aggregation_s += time.monotonic() - began
        validation = {site: part.validation for site, part in parts.items() if part.validation is not None}
        auc, loss = self._judge(round_ - 1, model, validation, best)
        manifest = RoundManifest(
            round=round_,
            base=base,
            result=hash_arrays(result),
            sites=parts,
            patients=patients,
            validation_auc=auc,
            validation_loss=loss,
            seconds=time.monotonic() - started,
            aggregation_s=aggregation_s,
        )
        self._events.emit("round_finished", round=round_, seconds=manifest.seconds, answered=counted)
        return result, manifest

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
            case Silence(reason=reason, late=late):
                return part(outcome="late" if late else "lost", reason=reason)
            case Refusal(reason=reason):
                return part(outcome="refused", reason=reason)
            case answer:
                return part(outcome="refused", reason=f"it answered with {answer.kind}")

    def _evaluate(self, round_: int, model: Arrays, sites: list[str], split: Any) -> dict[str, Metrics]:
        """Ask every site for the figures of a model on one split; silent sites are left out, and said so."""
        base = hash_arrays(model)
        order = Evaluate(facts=self._facts, round=round_, base=base, split=split)
        figures: dict[str, Metrics] = {}
        for reply in self._talk.ask(sites, order, model, self._config.server.round_timeout_s, self._stop):
            if isinstance(reply.answer, Evaluation) and reply.answer.base == base:
                figures[reply.site] = reply.answer.metrics
                self._events.emit("evaluated", site=reply.site, round=round_, split=split, auc=reply.answer.metrics.auc)
            else:
                reason = getattr(reply.answer, "reason", "it answered with something else")
                self._events.emit("evaluation_missing", site=reply.site, round=round_, split=split, reason=reason)
        return figures

    def _judge(
        self, round_: int, model: Arrays, validation: dict[str, Metrics], best: Best
    ) -> tuple[float | None, float | None]:
        """Weigh the sites' validation of a model; keep it when it is the best so far. Returns mean AUC and loss."""
        auc, loss = weighted(validation, "auc"), weighted(validation, "loss")
        if round_ > 0 and best.beaten_by(auc, loss):
            best.round, best.arrays, best.auc, best.loss = round_, model, auc, loss
            self._folder.keep_model("best", model, round_=round_)
        self._events.emit("judged", round=round_, auc=auc, loss=loss, best_round=best.round)
        return auc, loss

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

    def _summary(
        self, gathered: Gathered, best: Best, validation: dict[str, Metrics], tests: dict[str, Metrics]
    ) -> dict[str, Any]:
        groups = {
            group: sorted(site for site, first in self._trained.get(group, {}).items() if first <= best.round)
            for group in sorted(self._model.parameter_groups().keys() - self._model.agreed_groups)
        }
        return {
            "federation": self._config.federation.name,
            "run": self._run,
            "rounds": self._config.training.rounds,
            "best_round": best.round,
            "best_model": hash_arrays(best.arrays),
            "validation_auc": best.auc,
            "validation_loss": best.loss,
            "last_validation_auc": weighted(validation, "auc"),
            "last_validation": {site: metrics.model_dump(mode="json") for site, metrics in validation.items()},
            "test_auc_mean_over_sites": weighted(tests, "auc"),
            "test": {site: metrics.model_dump(mode="json") for site, metrics in tests.items()},
            # A model is the work of the sites that counted up to its round, whoever else took part or came later.
            "sites": sorted(site for site, rounds in self._counted.items() if rounds[0] <= best.round),
            "rounds_counted": self._counted,
            "groups": groups,
            "groups_never_trained": [group for group, by in groups.items() if not by],
            "clinical": self._clinical_record(),
            "refused": gathered.refused,
        }

    def _clinical_record(self) -> dict[str, Any] | None:
        return None if self._clinical is None else self._clinical.record()

    def _say_goodbye(self, best: Best, sites: list[str]) -> None:
        """Give every site the best model; the run is over whether or not a site hears it."""
        order = Finish(facts=self._facts, base=hash_arrays(best.arrays), best_round=best.round)
        present = [site for site in sites if site in self._talk.online()]
        for reply in self._talk.ask(present, order, best.arrays, _FAREWELL_S, self._stop):
            if isinstance(reply.answer, Silence):
                self._events.emit("farewell_unheard", site=reply.site, reason=reply.answer.reason)


def weighted(figures: dict[str, Metrics], key: str) -> float | None:
    """Return the mean of a figure over the sites that state it, weighted by their patients; None without any."""
    stated = [(getattr(metrics, key), metrics.patients) for metrics in figures.values()]
    stated = [(value, patients) for value, patients in stated if value is not None and patients > 0]
    total = sum(patients for _, patients in stated)
    return sum(value * patients for value, patients in stated) / total if total else None


def _merit(auc: float | None, loss: float | None) -> tuple[float, float]:
    return (-1.0 if auc is None else auc, float("-inf") if loss is None else -loss)
