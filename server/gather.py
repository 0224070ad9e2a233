"""Before round 1: wait for the sites, ask what they have, keep out who does not fit, with the reason."""

import threading
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fedpath.core.config import FederationConfig
from fedpath.core.errors import FederationError, FedpathError, StoppedError
from fedpath.core.events import EventLog
from fedpath.core.exchange.contract import differences, disagreements
from fedpath.core.exchange.messages import Describe, Description, Refuse, RunFacts
from fedpath.server.clinical import fault_of
from fedpath.server.talk import Silence, Talk, ask

_REPORT_EVERY_S = 15.0
_FAREWELL_S = 5.0
_RETURN_S = 15.0
"""A site that lost its coordinator tries again at least every ten seconds."""


@dataclass(slots=True)
class Gathered:
    """Who takes part, and who does not and why."""

    accepted: dict[str, Description]
    refused: dict[str, str]
    lost: set[str] = field(default_factory=set)
    """Of those that were asked last: the sites that went away instead of answering."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a stage needs that earlier ones left at the sites."""

    sites: frozenset[str]
    """The sites that have it."""
    otherwise: str
    """What the others are told."""


def gather(
    gathered: Gathered,
    config: FederationConfig,
    facts: RunFacts,
    talk: Talk,
    events: EventLog,
    stop: threading.Event,
    *,
    expected: Collection[str] = (),
    needs: Needs | None = None,
) -> None:
    """Wait for the sites, ask every one that is there and not accepted yet, and apply the feature contract.

    Args:
        gathered: who takes part already, in a run that goes on; it is added to.
        config: federation.toml.
        facts: of the run.
        talk: the conversation with the sites.
        events: where progress is reported.
        stop: set it to give up.
        expected: the sites to wait for, where nobody takes part yet; by default all that may join.
        needs: who can take part.

    Raises:
        FederationError: too few sites came, or fit, within `server.join_timeout_s`.
    """
    known = set(gathered.accepted) or set(expected)
    until = time.monotonic() + config.server.join_timeout_s
    while True:
        if known:
            grace_s = max(config.server.grace_s, _RETURN_S)
            _wait_for_sites(known, min(len(known), config.min_sites), grace_s, config, talk, events, stop)
        else:
            sites, grace_s = set(config.federation.sites), config.server.grace_s
            _wait_for_sites(sites, config.min_sites, grace_s, config, talk, events, stop)
        admit(gathered, config, facts, talk, events, stop, needs=needs)
        # An agent that was killed with the question in hand is asked again when it is back.
        if len(gathered.accepted) >= config.min_sites or not gathered.lost or time.monotonic() > until:
            break
    if len(gathered.accepted) < config.min_sites:
        reasons = "; ".join(f"{site}: {reason}" for site, reason in gathered.refused.items()) or "none was refused"
        raise FederationError(
            f"{len(gathered.accepted)} of {config.min_sites} sites can take part ({reasons})",
            remedy="mend what is said there at those sites, or lower server.min_sites",
        )


def see_who_is_there(gathered: Gathered, config: FederationConfig, talk: Talk, stop: threading.Event) -> None:
    """Give the sites that take part a moment to come back; nobody has to."""
    grace_s = max(config.server.grace_s, _RETURN_S)
    _wait_for_sites(set(gathered.accepted), 0, grace_s, config, talk, EventLog(), stop)


def admit(
    gathered: Gathered,
    config: FederationConfig,
    facts: RunFacts,
    talk: Talk,
    events: EventLog,
    stop: threading.Event,
    *,
    needs: Needs | None = None,
) -> bool:
    """Ask the sites that are there and not accepted yet; accept those that fit. Returns whether anything changed.

    A site that was refused has left; when it is there again, something was mended, so it is asked again.
    """
    newcomers = sorted(talk.online() - gathered.accepted.keys())
    gathered.lost = set()
    if not newcomers:
        return False
    stated: dict[str, Description] = {}
    refused: dict[str, str] = {}
    if needs is not None:
        refused = {site: needs.otherwise for site in newcomers if site not in needs.sites}
        dismiss(refused, needs.otherwise, facts, talk)
        newcomers = [site for site in newcomers if site in needs.sites]
    for reply in ask(talk, newcomers, Describe(facts=facts), {}, config.server.join_timeout_s, stop):
        if isinstance(reply.answer, Description):
            stated[reply.site] = reply.answer
        else:
            refused[reply.site] = reply.instead
            if isinstance(reply.answer, Silence) and not reply.answer.late:
                gathered.lost.add(reply.site)
    for site, description in sorted(stated.items()):
        if wrong := differences(config.features, description.contract):
            refused[site] = "; ".join(wrong)
        elif not description.patients.get("train"):
            refused[site] = "it has no training patients"
        elif fault := fault_of(description, facts.clinical):
            refused[site] = fault
    fitting = {site: description for site, description in stated.items() if site not in refused}
    contracts = {site: description.contract for site, description in (gathered.accepted | fitting).items()}
    # Whoever trains already is not put out by a newcomer.
    refused |= {site: why for site, why in disagreements(contracts).items() if site not in gathered.accepted}
    for site, reason in refused.items():
        events.emit("site_refused", site=site, reason=reason)
        if site in stated:
            dismiss([site], reason, facts, talk)
    for site in sorted(fitting.keys() - refused.keys()):
        gathered.accepted[site] = fitting[site]
        gathered.refused.pop(site, None)
        events.emit("site_accepted", site=site, patients=fitting[site].patients, slides=fitting[site].slides)
    gathered.refused |= refused
    return True


def dismiss(sites: Iterable[str], reason: str, facts: RunFacts, talk: Talk) -> None:
    """Tell sites that they take no part any more, and why; whether they hear it changes nothing here."""
    for _ in ask(talk, sites, Refuse(facts=facts, reason=reason), {}, _FAREWELL_S, threading.Event()):
        pass


@contextmanager
def telling_sites(facts: RunFacts, talk: Talk) -> Iterator[None]:
    """Tell the sites that are there when what is done here ends early."""
    try:
        yield
    except FedpathError as error:
        # Other errors are about the coordinator's own files, and no site's business.
        known = isinstance(error, FederationError | StoppedError)
        reason = error.message if known else "the coordinator could not go on"
        dismiss(sorted(talk.online()), f"the run has ended early: {reason}"[:2000], facts, talk)
        raise


def _wait_for_sites(
    known: set[str],
    needed: int,
    grace_s: float,
    config: FederationConfig,
    talk: Talk,
    events: EventLog,
    stop: threading.Event,
) -> None:
    """Return when every site of ``known`` is there, or ``needed`` of them have been for ``grace_s``."""
    server = config.server
    started = time.monotonic()
    enough_since: float | None = None
    reported: tuple[float, set[str]] = (-_REPORT_EVERY_S, set())
    while (online := talk.online() & known) != known:
        waited = time.monotonic() - started
        missing = sorted(known - online)
        if len(online) < needed:
            enough_since = None
        elif enough_since is None:
            enough_since = waited
        if enough_since is not None and waited - enough_since >= grace_s:
            events.emit("starting_without", missing=missing)
            return
        if enough_since is None and waited > server.join_timeout_s:
            raise FederationError(
                f"{len(online)} of {needed} sites joined within {server.join_timeout_s:.0f} s; "
                f"missing: {', '.join(missing)}",
                remedy="start `fedpath client join` there, or raise server.join_timeout_s or lower server.min_sites",
            )
        if online != reported[1] or waited - reported[0] >= _REPORT_EVERY_S:
            events.emit("waiting", online=sorted(online), missing=missing, needed=needed)
            reported = (waited, online)
        if stop.wait(0.1):
            raise StoppedError
