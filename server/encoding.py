"""A stage in which every site encodes its slides again: asked once, waited for long, nothing of it travels.

Encoding takes hours, and a site goes on where it was: one that loses its connection is asked again when it is back.
What a site has done is written down as its answer comes.
"""

import threading
import time
from pathlib import Path

from pydantic import TypeAdapter

from fedpath.core.config import FederationConfig
from fedpath.core.errors import FederationError, RefusedError, StoppedError
from fedpath.core.events import EventLog
from fedpath.core.exchange.checks import check_encoded
from fedpath.core.exchange.messages import Encode, Encoded, RunFacts
from fedpath.core.files import write_json
from fedpath.server.gather import Needs, dismiss, telling_sites
from fedpath.server.kept import read_kept
from fedpath.server.talk import Reply, Silence, Talk, ask

ENCODED_FILE = "encoded.json"
_POLL_S = 0.1
_KEPT = TypeAdapter(dict[str, Encoded])


class Encoding:
    """One encode stage.

    Args:
        config: federation.toml; its features are what the new features are to be.
        facts: of the stage.
        talk: the conversation with the sites.
        folder: where its records go; where they are already, it goes on.
        events: where progress is reported.
        stop: set it to give up.
    """

    def __init__(
        self,
        config: FederationConfig,
        facts: RunFacts,
        talk: Talk,
        folder: Path,
        events: EventLog,
        stop: threading.Event,
    ) -> None:
        self._config, self._facts, self._talk = config, facts, talk
        self._path, self._events, self._stop = folder / ENCODED_FILE, events, stop

    def execute(self, needs: Needs, timeout_s: float) -> list[str]:
        """Have every site that has the tuned encoder encode its slides; return those that did.

        A site that refuses, or has not answered after ``timeout_s``, takes no part afterwards. A site that is away is
        waited for as long as for joining, once nobody else is at work.

        Raises:
            FederationError: fewer than `min_sites` did; those that are there have been told.
            StoppedError: `stop` was set; likewise.
        """
        with telling_sites(self._facts, self._talk):
            # Nobody is kept waiting for hours who cannot go on afterwards.
            dismiss(sorted(self._talk.online() - needs.sites), needs.otherwise, self._facts, self._talk)
            return self._execute(set(needs.sites), timeout_s)

    def _execute(self, sites: set[str], timeout_s: float) -> list[str]:
        done = read_kept(self._path, _KEPT.validate_json) or {}
        out: dict[str, str] = {}
        started = idle_since = time.monotonic()
        patience_s = self._config.server.join_timeout_s
        while waiting := sites - done.keys() - out.keys():
            now = time.monotonic()
            if now - started > timeout_s or now - idle_since > patience_s:
                out |= dict.fromkeys(waiting, "it was not there to encode its slides")
                break
            if not (there := waiting & self._talk.online()):
                if self._stop.wait(_POLL_S):
                    raise StoppedError
                continue
            self._events.emit("encoding", sites=sorted(there))
            left_s = timeout_s - (now - started)
            for reply in ask(self._talk, there, Encode(facts=self._facts), {}, left_s, self._stop):
                self._take_in(reply, done, out)
            idle_since = time.monotonic()
        for site, reason in sorted(out.items()):
            self._events.emit("site_refused", site=site, reason=reason)
        if len(done) < self._config.min_sites:
            reasons = "; ".join(f"{site}: {reason}" for site, reason in sorted(out.items()))
            raise FederationError(
                f"{len(done)} of {self._config.min_sites} sites encoded their slides ({reasons})",
                remedy="mend what is said there at those sites, or lower server.min_sites; the same command goes on "
                "there",
            )
        for site, reason in sorted(out.items()):
            if site in self._talk.online():
                dismiss([site], reason, self._facts, self._talk)
        return sorted(done)

    def _take_in(self, reply: Reply, done: dict[str, Encoded], out: dict[str, str]) -> None:
        """Note one reply; of a site that went away nothing is noted: it may come back."""
        site = reply.site
        match reply.answer:
            case Encoded() as answer:
                try:
                    check_encoded(site, answer, self._facts.features)
                except RefusedError as error:
                    out[site] = error.message
                    return
                done[site] = answer
                kept = {name: done[name].model_dump(mode="json") for name in sorted(done)}
                write_json(self._path, kept)
                self._events.emit("encoded", site=site, slides=answer.slides, seconds=answer.seconds)
            case Silence(late=False):
                pass
            case _:
                out[site] = reply.instead
