"""Before round 1: wait for the sites, ask what they have, keep out who does not fit, with the reason."""

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from fedpath.core.config import FederationConfig
from fedpath.core.errors import FederationError, StoppedError
from fedpath.core.events import EventLog
from fedpath.core.exchange.contract import differences, disagreements
from fedpath.core.exchange.messages import Describe, Description, Refuse, RunFacts
from fedpath.server.clinical import fault_of
from fedpath.server.conversation import Conversation, Silence

_REPORT_EVERY_S = 15.0
_FAREWELL_S = 5.0


@dataclass(slots=True)
class Gathered:
    """Who takes part, and who does not and why."""

    accepted: dict[str, Description]
    refused: dict[str, str]


def gather(
    config: FederationConfig, facts: RunFacts, talk: Conversation, events: EventLog, stop: threading.Event
) -> Gathered:
    """Wait for the sites, ask every one that is there, and apply the feature contract.

    Raises:
        FederationError: too few sites came, or fit, within `server.join_timeout_s`.
    """
    _wait_for_sites(config, talk, events, stop)
    gathered = Gathered({}, {})
    admit(gathered, config, facts, talk, events, stop)
    if len(gathered.accepted) < config.min_sites:
        reasons = "; ".join(f"{site}: {reason}" for site, reason in gathered.refused.items()) or "none was refused"
        raise FederationError(
            f"{len(gathered.accepted)} of {config.min_sites} sites can take part ({reasons})",
            remedy="mend what is said there at those sites, or lower server.min_sites",
        )
    return gathered


def admit(
    gathered: Gathered,
    config: FederationConfig,
    facts: RunFacts,
    talk: Conversation,
    events: EventLog,
    stop: threading.Event,
) -> bool:
    """Ask the sites that are there and not accepted yet; accept those that fit. Returns whether anything changed.

    A site that was refused has left; when it is there again, something was mended, so it is asked again.
    """
    newcomers = sorted(talk.online() - gathered.accepted.keys())
    if not newcomers:
        return False
    stated: dict[str, Description] = {}
    refused: dict[str, str] = {}
    for reply in talk.ask(newcomers, Describe(facts=facts), {}, config.server.join_timeout_s, stop):
        answer = reply.answer
        match answer:
            case Description():
                stated[reply.site] = answer
            case Silence(reason=reason):
                refused[reply.site] = reason
            case _:
                refused[reply.site] = getattr(answer, "reason", f"it answered with {answer.kind}")
    for site, description in stated.items():
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


def dismiss(sites: Iterable[str], reason: str, facts: RunFacts, talk: Conversation) -> None:
    """Tell sites that they take no part any more, and why; whether they hear it changes nothing here."""
    for _ in talk.ask(sites, Refuse(facts=facts, reason=reason), {}, _FAREWELL_S, threading.Event()):
        pass


def _wait_for_sites(config: FederationConfig, talk: Conversation, events: EventLog, stop: threading.Event) -> None:
    """Return when every site is there, or `min_sites` have been for `grace_s`."""
    server, known = config.server, set(config.federation.sites)
    started = time.monotonic()
    enough_since: float | None = None
    reported: tuple[float, set[str]] = (-_REPORT_EVERY_S, set())
    while (online := talk.online()) != known:
        waited = time.monotonic() - started
        missing = sorted(known - online)
        if len(online) < config.min_sites:
            enough_since = None
        elif enough_since is None:
            enough_since = waited
        if enough_since is not None and waited - enough_since >= server.grace_s:
            events.emit("starting_without", missing=missing)
            return
        if enough_since is None and waited > server.join_timeout_s:
            raise FederationError(
                f"{len(online)} of {config.min_sites} sites joined within {server.join_timeout_s:.0f} s; "
                f"missing: {', '.join(missing)}",
                remedy="start `fedpath client join` there, or raise server.join_timeout_s or lower server.min_sites",
            )
        if online != reported[1] or waited - reported[0] >= _REPORT_EVERY_S:
            events.emit("waiting", online=sorted(online), missing=missing, needed=config.min_sites)
            reported = (waited, online)
        if stop.wait(0.1):
            raise StoppedError
