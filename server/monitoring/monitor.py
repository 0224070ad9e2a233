"""All that can be seen of a coordinator: metrics from its events, what is looked up at a scrape, its health."""

import time
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from fedpath.core.config import FederationConfig
from fedpath.core.errors import FedpathError
from fedpath.core.monitoring.health import Health
from fedpath.core.monitoring.lookups import certificate, free_bytes
from fedpath.core.monitoring.metrics import CHILDREN, Metrics, Series
from fedpath.server.monitoring.heard import Heard
from fedpath.server.monitoring.rows import CHECKS, OUTCOMES, REGISTRY_STATES, ROWS
from fedpath.server.monitoring.watched import Watched

_ASK_AGAIN_S = 30.0
"""A registry that did not answer is not asked again for so long: a scrape must not wait for it each time."""


class Monitor:
    """Of one coordinator.

    Args:
        config: federation.toml.
        state: the coordinator's folder.
        watched: its parts, as they come to be.
    """

    def __init__(self, config: FederationConfig, state: Path, watched: Watched) -> None:
        self._config, self._state, self._watched = config, state, watched
        self.metrics = Metrics(ROWS, "server", self._look)
        self.heard = Heard(self.metrics, watched.pulse)
        """A listener for `EventLog`."""
        self.health = Health()
        self.health.add("main_loop", "vital", watched.pulse.stuck)
        self.health.add("listener", "vital", self._listener)
        self.health.add("started", "ready", lambda: "it is being started" if watched.listener is None else None)
        self.health.add("registry", "minor", lambda: self.heard.away)
        self._silent_until = 0.0
        for site in config.federation.sites:
            self.metrics.count("fedpath_site_kept_out_total", 0, site=site)
            for outcome in OUTCOMES:
                self.metrics.count("fedpath_site_replies_total", 0, site=site, outcome=outcome)

    def _listener(self) -> str | None:
        listener = self._watched.listener
        if listener is None:
            return None  # it is only being started, or there is no more to be served
        return None if listener.is_up else "the port for the sites is not served"

    def _look(self) -> Iterator[Series]:
        watched, config = self._watched, self._config
        yield "fedpath_sites_needed", {}, float(config.min_sites)
        yield from certificate(config.server.credentials / "server.crt", "server")
        yield from free_bytes("fedpath_disk_free_bytes", {"state": self._state})
        state = self.health.look()
        for check in CHECKS:
            yield "fedpath_healthy", {"check": check}, float(state.wrong[check] is None)
        if watched.mailbox is not None:
            for outcome, count in dict(watched.mailbox.counts).items():
                yield CHILDREN.name, {"outcome": outcome}, float(count)
        yield from self._of_listener()
        yield from self._of_sites()
        yield from self._of_registry()

    def _of_listener(self) -> Iterator[Series]:
        listener = self._watched.listener
        yield "fedpath_listener_up", {}, float(listener is not None and listener.is_up)
        if listener is not None:
            for reason, count in listener.refused.items():
                yield "fedpath_requests_refused_total", {"reason": reason}, float(count)

    def _of_sites(self) -> Iterator[Series]:
        sites, server = self._config.federation.sites, self._watched.server
        if server is None:
            return
        try:
            online = server.online()
        except (OSError, FedpathError, DBAPIError):  # of the state's disk, which is why the coordinator ends
            return
        for site in sites:
            yield "fedpath_site_online", {"site": site}, float(site in online)
        traffic = server.traffic
        for direction, counts in (("to_site", traffic.to_site), ("from_site", traffic.from_site)):
            for site, count in dict(counts).items():
                yield "fedpath_transfer_bytes_total", {"site": site, "direction": direction}, float(count)
        for site, at in dict(traffic.seen).items():
            yield "fedpath_site_last_seen_timestamp_seconds", {"site": site}, at
        for site, skew_s in dict(traffic.skew_s).items():
            yield "fedpath_site_clock_skew_seconds", {"site": site}, skew_s
        for reason, count in dict(traffic.denied).items():
            yield "fedpath_auth_failures_total", {"reason": reason}, float(count)

    def _of_registry(self) -> Iterator[Series]:
        registry = self._watched.registry
        counts: dict[str, int] | None = None
        if registry is not None and time.monotonic() >= self._silent_until:
            try:
                counts = registry.count(self._config.federation.name)
            except FedpathError:  # away, or damaged: what needs it says so
                self._silent_until = time.monotonic() + _ASK_AGAIN_S
        yield "fedpath_registry_up", {}, float(counts is not None)
        if counts is not None:
            for state in REGISTRY_STATES:
                yield "fedpath_registry_runs", {"state": state}, float(counts.get(state, 0))
