"""After the last round: the sites' figures of the last and the best model, the summary, and the goodbye."""

import math
import threading
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

from fedpath.core.config import FederationConfig
from fedpath.core.errors import StoppedError
from fedpath.core.events import EventLog
from fedpath.core.exchange.messages import Evaluate, Evaluation, Finish, Metrics, Receipt, RunFacts
from fedpath.core.exchange.wire import Arrays, hash_arrays
from fedpath.core.models.protocol import BagModel
from fedpath.server.folder import Closing, RunFolder
from fedpath.server.standing import Standing, weighted
from fedpath.server.talk import Silence, Talk, ask_each

Asking = TypeVar("Asking", Evaluate, Finish)

_FAREWELL_S = 60.0
_RETURN_S = 15.0
"""How long a site that went away during the goodbye is waited for at least."""
_POLL_S = 0.25
_REPORT_EVERY_S = 15.0


class Close:
    """The end of one run of rounds.

    Args:
        config: of the run.
        facts: of the run.
        talk: the conversation with the sites.
        folder: where its records go.
        events: where progress is reported.
        stop: set it to give up.
    """

    def __init__(
        self,
        config: FederationConfig,
        facts: RunFacts,
        talk: Talk,
        folder: RunFolder,
        events: EventLog,
        stop: threading.Event,
    ) -> None:
        self._config, self._facts, self._talk = config, facts, talk
        self._folder, self._events, self._stop = folder, events, stop

    @property
    def _tests(self) -> bool:
        """Whether the best model is tested.

        A selector and a tuned encoder are not: they are on the way to a model that is, and whoever looked at test
        patients' figures on the way could choose by them.
        """
        return self._facts.stage is None or self._facts.stage.kind == "train"

    def figures(self, standing: Standing, sites: list[str]) -> Closing:
        """Have the last model validated, judge it, and have the best one tested, where that has not been done yet."""
        closing = self._folder.closing()
        if closing is None:
            closing = Closing(validation=self._ask(standing, standing.round, standing.model, sites, "validation"))
            # Kept before the best model is replaced: a coordinator that is killed then finds why it was.
            self._folder.keep_closing(closing)
            auc, loss = weighted(closing.validation, "auc"), weighted(closing.validation, "loss")
            if standing.judge(standing.round, auc, loss):
                self._folder.models.call("best", standing.round)
            best_round = standing.best.round
            self._events.emit("judged", round=standing.round, auc=auc, loss=loss, best_round=best_round)
        if closing.test is None:
            tests = {}
            if self._tests:
                tests = self._ask(standing, standing.best.round, self._folder.best_model(standing), sites, "test")
            closing = Closing(validation=closing.validation, test=tests)
            self._folder.keep_closing(closing)
            if tests:
                auc, loss = weighted(tests, "auc"), weighted(tests, "loss")
                self._events.emit("tested", round=standing.best.round, auc=auc, loss=loss)
        return closing

    def say_goodbye(self, standing: Standing, sites: list[str], *, more: bool) -> list[str]:
        """Give every site the best model; return those that have it. The run is over whether or not a site hears it.

        Args:
            standing: after the last round.
            sites: that took part.
            more: another stage follows, so the sites are to stay.
        """
        best, model = standing.best, self._folder.best_model(standing)
        order = Finish(facts=self._facts, base=hash_arrays(model), best_round=best.round, more=more)
        present = [site for site in sites if site in self._talk.online()]
        orders = _to_each(order, present, standing, best.round)
        # Of a stage in between, later ones need what arrives here: a site is given the time it has for a round.
        timeout_s = self._config.server.round_timeout_s if more else _FAREWELL_S
        have: list[str] = []
        lost = self._hand_over(orders, model, timeout_s, have)
        # An agent that was killed just now is about to be started again, and would wait for a coordinator that is gone.
        back, _ = self._wait_for(lost, 0.0, max(self._config.server.grace_s, _RETURN_S), "its goodbye")
        lost |= self._hand_over({site: orders[site] for site in back}, model, timeout_s, have)
        for site in sorted(lost.keys() - set(have)):
            self._events.emit("farewell_unheard", site=site, reason=lost[site])
        return sorted(have)

    def _hand_over(
        self, orders: Mapping[str, Finish], model: Arrays, timeout_s: float, have: list[str]
    ) -> dict[str, str]:
        """Give sites the best model; add those that have it to ``have``; return those that went away, and why."""
        lost = {}
        for reply in ask_each(self._talk, orders, model, timeout_s, self._stop):
            match reply.answer:
                case Receipt():
                    have.append(reply.site)
                case Silence(late=False):
                    lost[reply.site] = reply.instead
                case _:
                    self._events.emit("farewell_unheard", site=reply.site, reason=reply.instead)
        return lost

    def _ask(
        self,
        standing: Standing,
        round_: int,
        model: Arrays,
        sites: list[str],
        split: Literal["validation", "test"],
    ) -> dict[str, Metrics]:
        """Ask every site for the figures of a model on one split; silent sites are left out, and said so."""
        base = hash_arrays(model)
        order = Evaluate(facts=self._facts, round=round_, base=base, split=split)
        orders = _to_each(order, sites, standing, round_)
        figures: dict[str, Metrics] = {}
        asked, waited_s = sites, 0.0
        while True:
            lost: dict[str, str] = {}
            now = {site: orders[site] for site in sorted(asked)}
            for reply in ask_each(self._talk, now, model, self._config.server.round_timeout_s, self._stop):
                match reply.answer:
                    case Evaluation(base=of, metrics=metrics) if of == base:
                        figures[reply.site] = metrics
                        self._events.emit("evaluated", site=reply.site, round=round_, split=split, auc=metrics.auc)
                    case Silence(late=False):
                        lost[reply.site] = reply.instead
                    case _:
                        self._events.emit(
                            "evaluation_missing", site=reply.site, round=round_, split=split, reason=reply.instead
                        )
            enough = len(figures) >= min(self._config.min_sites, len(sites))
            patience_s = self._config.server.grace_s if enough else self._config.deadline.quorum_wait_s
            asked, waited_s = self._wait_for(lost, waited_s, patience_s, f"{split} figures")
            for site in sorted(lost.keys() - set(asked)):
                self._events.emit("evaluation_missing", site=site, round=round_, split=split, reason=lost[site])
            if not asked:
                # In one order, whoever was first: the means over them are sums of floats.
                return dict(sorted(figures.items()))

    def _wait_for(
        self, lost: Mapping[str, str], waited_s: float, patience_s: float, what: str
    ) -> tuple[list[str], float]:
        """Wait until the sites that went away are back, or it has taken too long; return those that are, and the time.

        Which model is the best depends on what each site says of it: a site whose agent was killed is asked again.
        """
        reported = -math.inf
        while (missing := sorted(lost.keys() - self._talk.online())) and waited_s < patience_s:
            if waited_s - reported >= _REPORT_EVERY_S:
                reported = waited_s
                self._events.emit("figures_missing", what=what, missing=missing)
            if self._stop.wait(_POLL_S):
                raise StoppedError
            waited_s += _POLL_S
        # The time runs on also where nobody had to be waited for: a site that goes and comes holds nobody up for ever.
        back = sorted(lost.keys() & self._talk.online()) if waited_s - _POLL_S <= patience_s else []
        return back, waited_s + _POLL_S


def _to_each(order: Asking, sites: Iterable[str], standing: Standing, round_: int) -> dict[str, Asking]:
    """Return the order for each site: with the round that says which of its personal layers go with a round's model."""
    return {site: order.model_copy(update={"counted": standing.last_counted(site, round_)}) for site in sorted(sites)}


def summary_of(
    facts: RunFacts,
    model: BagModel,
    standing: Standing,
    closing: Closing,
    refused: dict[str, str],
    clinical: dict[str, Any] | None,
) -> dict[str, Any]:
    """Return what summary.json says of one run of rounds."""
    best, tests = standing.best, closing.test or {}
    groups = {
        group: sorted(site for site, first in standing.trained.get(group, {}).items() if first <= best.round)
        for group in sorted(model.trainable_groups - set(facts.local.personal))
    }
    return {
        "federation": facts.federation,
        "run": facts.run,
        "rounds": standing.round,
        "best_round": best.round,
        "best_model": standing.manifests[best.round - 1].result if best.round else None,
        "validation_auc": best.auc,
        "validation_loss": best.loss,
        "last_validation_auc": weighted(closing.validation, "auc"),
        "last_validation": {site: metrics.model_dump(mode="json") for site, metrics in closing.validation.items()},
        "test_auc_mean_over_sites": weighted(tests, "auc"),
        "test": {site: metrics.model_dump(mode="json") for site, metrics in tests.items()},
        # A model is the work of the sites that counted up to its round, whoever else took part or came later.
        "sites": sorted(standing.contributions(best.round)),
        "rounds_counted": standing.counted,
        "groups": groups,
        "groups_never_trained": [group for group, by in groups.items() if not by],
        "personal": facts.local.personal,
        "clinical": clinical,
        "refused": refused,
    }
