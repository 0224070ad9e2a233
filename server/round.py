"""One round: send the model, hear the sites, check each update as it comes, and say when enough of them have answered.

A round ends when every site that was asked has answered, at its deadline, or, with `[asynchronous]`, when the buffer is
full; in any case not before its quorum. Until then it listens: a site that went away is asked again when it is back.
All that happens is in the round's journal before anything follows from it: a coordinator that is killed goes on here.
"""

import math
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fedpath.core.config import FederationConfig
from fedpath.core.errors import FederationError, RefusedError, StoppedError
from fedpath.core.events import EventLog
from fedpath.core.exchange.checks import Entitled, Expected, check_change, check_form, refused
from fedpath.core.exchange.messages import Order, Refusal, Update
from fedpath.core.exchange.wire import Arrays
from fedpath.server.aggregation import Combiner, Counted, measure
from fedpath.server.journal import Journal
from fedpath.server.records import SiteRound
from fedpath.server.spool import Spool
from fedpath.server.talk import Asked, Reply, Silence, Talk

_POLL_S = 0.25
_REPORT_EVERY_S = 15.0
_AGAIN_AFTER_S, _MOST_TRIES = 60.0, 3
"""Of a site that said that it could not and is still there, in a round that cannot end without it."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A site that is at work."""

    asked: Asked
    round: int
    """Whose model it trains."""
    since: float
    """Of `time.monotonic`."""


@dataclass(frozen=True, slots=True)
class Base:
    """A global model, as an order named it."""

    hash: str
    model: Arrays


@dataclass(slots=True)
class Plan:
    """What one round asks, and when it is over."""

    round: int
    base: Base
    orders: Callable[[str], Order]
    """The order for a site."""
    arrays: Arrays
    """That go along."""
    expected: Callable[[int], Expected]
    """What the updates of a round must be like: of this one, or of an earlier one whose update comes late."""
    earlier: Callable[[int], Base | None]
    """The model that a round started from; None where it is not kept any more."""
    entitled: Mapping[str, Entitled]
    deadline_s: float
    quorum: int
    """Updates without which the round does not end."""
    enough: int | None = None
    """Updates with which it ends at once, whoever is still at work; all by default."""
    concurrency: int | None = None
    """Sites at work at the same time; all by default."""


@dataclass(slots=True)
class Heard:
    """What a round has come to."""

    parts: dict[str, SiteRound] = field(default_factory=dict)
    aggregation_s: float = 0.0
    """Spent on checking and adding."""

    def counted(self) -> int:
        """Return how many updates count."""
        return sum(part.outcome == "answered" for part in self.parts.values())


class Round:
    """Hears the sites of one round.

    Args:
        plan: of the round.
        config: of the run.
        talk: the conversation with the sites.
        journal: of the round; what is in it has happened already.
        spool: of the round.
        combiner: each update that counts is added to it.
        at_work: sites that still train an earlier model; what remains of it is for the next round.
        away: sites that are not connected, and since when; likewise.
        events: where progress is reported.
        stop: set it to give up.
    """

    def __init__(
        self,
        plan: Plan,
        config: FederationConfig,
        talk: Talk,
        journal: Journal,
        spool: Spool,
        combiner: Combiner,
        at_work: dict[str, Pending],
        away: dict[str, float],
        events: EventLog,
        stop: threading.Event,
    ) -> None:
        self._plan, self._config, self._talk, self._journal = plan, config, talk, journal
        self._spool, self._combiner, self._at_work = spool, combiner, at_work
        self._events, self._stop = events, stop
        self._heard = Heard()
        self._away = away
        self._gone: set[str] = set()
        """Sites that were refused and have left since: when they are back, something was mended."""
        self._could_not: dict[str, list[float]] = {}
        """When each site said that it could not do what was asked."""
        self._causes: dict[str, str] = {}
        """Why what a site sent does not count, in one word (`fedpath.core.exchange.checks.CAUSES`, or "site")."""
        self._waits_since: float | None = None
        self._reported = -math.inf

    def hear(self, sites: Collection[str]) -> Heard:
        """Ask the sites and hear them until the round is over.

        Raises:
            FederationError: too few sites gave a usable update, for as long as `[deadline]` says; what came is kept.
            StoppedError: ``stop`` was set.
        """
        self._take_up()
        started = time.monotonic()
        while True:
            self._ask_who_is_free(sites)
            now = time.monotonic()
            if self._is_over(now, started):
                # What has come meanwhile counts as well.
                if self._plan.enough is not None or not self._listen(sites, 0.0):
                    break
                continue
            self._check_patience(now, started, sites)
            if not self._at_work:
                self._stop.wait(_POLL_S)
            self._listen(sites, _POLL_S)
            if self._stop.is_set():
                raise StoppedError
        self._leave_out_the_late(sites)
        return self._heard

    def _take_up(self) -> None:
        """Count what had been answered when the coordinator was killed."""
        for line in self._journal.lines:
            if line["state"] != "answered" or not self._spool.has(line["site"], line["part"]["sha256"]):
                continue
            part = SiteRound.model_validate(line["part"])
            if part.of_round is None or self._plan.earlier(part.of_round) is not None:
                self._count(line["site"], part)

    def _ask_who_is_free(self, sites: Collection[str]) -> None:
        """Send the model to those that are to be asked now."""
        plan, parts, here = self._plan, self._heard.parts, self._talk.online()
        for site in sorted(set(sites) - here - parts.keys() - self._at_work.keys()):
            self._report(site, self._lose(site, "it is not connected"))
        free = [
            site
            for site in sorted(here.intersection(sites))
            if site not in self._at_work
            and (site not in parts or site in self._gone or site in self._away or self._may_try_again(site))
        ]
        if plan.concurrency is not None:
            free = free[: max(0, plan.concurrency - len(self._at_work))]
        if not free:
            return
        self._journal.note("asked", sites=free, base=plan.base.hash)
        orders = {site: plan.orders(site) for site in free}
        # An answer that comes after the round still has its use where late ones count.
        ttl_s = plan.deadline_s + self._config.deadline.quorum_wait_s + 60
        ttl_s += self._config.late.most_rounds * self._config.server.round_timeout_s
        now = time.monotonic()
        for asked in self._talk.post(orders, plan.arrays, ttl_s):
            self._at_work[asked.site] = Pending(asked, plan.round, now)
        for site in free:
            parts.pop(site, None)
            self._away.pop(site, None)
            self._gone.discard(site)

    def _may_try_again(self, site: str) -> bool:
        """Return whether a site that could not is asked again: the round waits for its quorum, and some time passed."""
        tries = self._could_not.get(site, [])
        waits = self._waits_since is not None and self._heard.parts[site].outcome == "refused"
        return waits and 0 < len(tries) < _MOST_TRIES and time.monotonic() - tries[-1] >= _AGAIN_AFTER_S

    def _is_over(self, now: float, started: float) -> bool:
        plan, counted = self._plan, self._heard.counted()
        if counted < plan.quorum:
            return False
        if plan.enough is not None:
            return counted >= plan.enough
        if now - started > plan.deadline_s:
            return True
        grace_s = self._config.server.grace_s
        away = any(now - since < grace_s for site, since in self._away.items() if site in self._heard.parts)
        return not away and not any(pending.round == plan.round for pending in self._at_work.values())

    def _check_patience(self, now: float, started: float, sites: Collection[str]) -> None:
        """Say who is missing while the round cannot end; give up after the limit."""
        plan, counted = self._plan, self._heard.counted()
        working = [pending for pending in self._at_work.values() if now - pending.since <= plan.deadline_s]
        if counted >= plan.quorum or working:
            self._waits_since = None
            return
        self._waits_since = self._waits_since or now
        missing = sorted(set(sites) - {site for site, part in self._heard.parts.items() if part.outcome == "answered"})
        if now - self._waits_since >= self._config.deadline.quorum_wait_s:
            raise self._too_few(counted, missing)
        if now - self._reported >= _REPORT_EVERY_S:
            self._reported = now
            self._events.emit("quorum_missing", round=plan.round, counted=counted, needed=plan.quorum, missing=missing)

    def _too_few(self, counted: int, missing: list[str]) -> FederationError:
        plan = self._plan
        reasons = {site: part.reason for site, part in self._heard.parts.items() if part.reason}
        for site in missing:
            reasons.setdefault(site, "no answer" if site in self._at_work else "it is not connected")
        said = "; ".join(f"{site}: {reasons[site]}" for site in sorted(reasons))
        kept = f"the model of round {plan.round - 1} is kept" if plan.round > 1 else "no model yet"
        return FederationError(
            f"round {plan.round}: {counted} of {plan.quorum} sites gave a usable update ({said})",
            remedy=f"mend what is said there, or lower server.min_sites; {kept}, and so are the updates that came: "
            "the same command goes on there",
        )

    def _listen(self, sites: Collection[str], timeout_s: float) -> bool:
        """Take in one reply; return whether there was one."""
        here = self._talk.online()
        refused = {site for site, part in self._heard.parts.items() if part.outcome == "refused"}
        self._gone |= refused - here
        # Whoever was asked first is heard first.
        open_ = [pending.asked for pending in sorted(self._at_work.values(), key=lambda pending: pending.since)]
        reply = self._talk.next_reply(open_, timeout_s) if open_ else None
        if reply is None:
            return False
        pending = self._at_work.pop(reply.site)
        if reply.site not in sites:
            return True
        began = time.monotonic()
        part = self._take_in(reply, pending)
        self._heard.aggregation_s += time.monotonic() - began
        self._report(reply.site, part)
        return True

    def _take_in(self, reply: Reply, pending: Pending) -> SiteRound:
        """Check one reply, count it if it is good, and return what is written down about it."""
        site, waited = reply.site, time.monotonic() - pending.since
        part = partial(
            SiteRound, sent_bytes=reply.sent_bytes, received_bytes=reply.received_bytes, seconds=round(waited, 3)
        )
        match reply.answer:
            case Update() as update:
                try:
                    done = self._checked(reply, update, pending, part)
                except RefusedError as error:
                    self._spool.drop(site)
                    self._causes[site] = error.cause
                    done = part(outcome="refused", reason=error.message)
                    self._note("refused", site, done)
                    return done
                self._note("answered", site, done)
                self._count(site, done)
                return done
            case Silence(late=False):
                return self._lose(site, reply.instead, part)
            case answer:
                if isinstance(answer, Refusal):
                    self._could_not.setdefault(site, []).append(time.monotonic())
                self._causes[site] = "site"
                done = part(outcome="refused", reason=reply.instead)
                self._note("refused", site, done)
                return done

    def _lose(self, site: str, reason: str, part: Callable[..., SiteRound] = SiteRound) -> SiteRound:
        """Note a site that is not there; it is asked when it is back."""
        self._away.setdefault(site, time.monotonic())
        return self._note("lost", site, part(outcome="lost", reason=reason))

    def _checked(self, reply: Reply, update: Update, pending: Pending, part: Callable[..., SiteRound]) -> SiteRound:
        """Keep an update and check it; return what is written down about it."""
        site, age = reply.site, self._plan.round - pending.round
        base = self._base_of(pending.round)
        if base is None or age > self._config.late.most_rounds:
            raise RefusedError(
                f"site {site}, round {self._plan.round}: its update is of round {pending.round}, too old to count",
                remedy="raise late.most_rounds, or give the site less work a round",
                cause="stale",
            )
        _, sha256 = self._spool.keep(reply)
        try:
            arrays = self._spool.open(site)
        except RefusedError as error:
            raise refused(site, pending.round, error.message, "unreadable") from None
        with arrays:
            expected, entitled = self._plan.expected(pending.round), self._plan.entitled[site]
            check_form(site, update, arrays, expected=expected, entitled=entitled)
            try:
                norms = measure(arrays, base.model)
            except RefusedError as error:
                raise RefusedError(
                    f"site {site}, round {pending.round}: update refused: {error.message}",
                    remedy=error.remedy,
                    cause=error.cause,
                ) from None
        check_change(site, pending.round, norms, self._config.aggregation.max_update_norm)
        return part(
            outcome="answered",
            patients=update.patients,
            training_loss=update.training_loss,
            training_s=update.seconds,
            # What a late one says is of an older model.
            validation=update.validation if age == 0 else None,
            of_round=pending.round if age else None,
            weight=(1 + age) ** -self._config.late.staleness_exponent if age else 1.0,
            norm=math.hypot(*norms.values()),
            sha256=sha256,
        )

    def _count(self, site: str, part: SiteRound) -> None:
        """Hand an update to the combiner."""
        self._heard.parts[site] = part
        base = None if part.of_round is None else self._base_of(part.of_round)
        weights = {group: patients * part.weight for group, patients in part.patients.items()}
        arrays = self._spool.open(site)
        late_base = None if base is None else base.model
        self._combiner.add(Counted(site, arrays, weights, late_base, norm=part.norm))

    def _base_of(self, round_: int) -> Base | None:
        return self._plan.base if round_ == self._plan.round else self._plan.earlier(round_)

    def _leave_out_the_late(self, sites: Collection[str]) -> None:
        """Note who has not answered; where late updates count they stay at work, otherwise nobody waits for them."""
        plan = self._plan
        carries = self._config.late.rule == "carry" or plan.enough is not None
        for site, pending in list(self._at_work.items()):
            age = plan.round + 1 - pending.round
            if carries and age <= self._config.late.most_rounds:
                reason = f"still at work on the model of round {pending.round}"
            else:
                reason = f"no answer within {time.monotonic() - pending.since:.0f} s"
                self._talk.drop(self._at_work.pop(site).asked)
            if site in sites and site not in self._heard.parts:
                self._report(site, self._note("late", site, SiteRound(outcome="late", reason=reason)))

    def _note(self, state: Any, site: str, part: SiteRound) -> SiteRound:
        self._heard.parts[site] = part
        self._journal.note(state, site=site, part=part.model_dump(mode="json"))
        return part

    def _report(self, site: str, part: SiteRound) -> None:
        validation = part.validation
        self._events.emit(
            "site_" + part.outcome,
            round=self._plan.round,
            site=site,
            reason=part.reason,
            cause=self._causes.pop(site, None),
            of_round=part.of_round,
            training_loss=part.training_loss,
            validation_auc=validation.auc if validation is not None else None,
            sent_bytes=part.sent_bytes,
            received_bytes=part.received_bytes,
        )
