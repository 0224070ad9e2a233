"""All that can be seen of a hospital's agent: metrics from its events, what is looked up at a scrape, its health."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from fedpath.client.audit import AUDIT_FILE
from fedpath.client.monitoring.gpu import gpus
from fedpath.client.monitoring.heard import Heard
from fedpath.client.monitoring.rows import CHECKS, ROWS
from fedpath.client.monitoring.watched import Watched
from fedpath.core.config import SiteConfig
from fedpath.core.config.kit import AUTHORITY_FILE
from fedpath.core.monitoring.health import Health
from fedpath.core.monitoring.lookups import certificate, free_bytes
from fedpath.core.monitoring.metrics import CHILDREN, Metrics, Series

_ROOM = 1 << 20
"""Bytes without which the audit log cannot be counted on to take another line."""


def audit_trouble(state: Path) -> str | None:
    """Say why the audit log cannot be written to now, so that nothing could leave; None where it can."""
    try:
        handle = os.open(state / AUDIT_FILE, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    except FileNotFoundError:
        return None  # nothing has left yet
    except OSError as error:
        return f"{AUDIT_FILE} cannot be written to: {error.strerror}"
    os.close(handle)
    return f"{AUDIT_FILE}: its disk is full" if shutil.disk_usage(state).free < _ROOM else None


class Monitor:
    """Of one agent.

    Args:
        config: site.toml.
        kit: the kit's folder.
        watched: the agent's parts, as they come to be.
    """

    def __init__(self, config: SiteConfig, kit: Path, watched: Watched) -> None:
        self._kit, self._watched = kit, watched
        self._folders = {"state": config.state, "features": config.data.features}
        self.metrics = Metrics(ROWS, "client", self._look)
        self.heard = Heard(self.metrics, watched.pulse)
        """A listener for `EventLog`."""
        self.health = Health()
        self.health.add("main_loop", "vital", watched.pulse.stuck)
        self.health.add("coordinator", "ready", lambda: self.heard.away)
        self.health.add("audit", "minor", lambda: audit_trouble(config.state))

    def _look(self) -> Iterator[Series]:
        watched = self._watched
        if (contact := watched.pulse.contact) is not None:
            yield "fedpath_client_last_contact_timestamp_seconds", {}, contact
        yield from certificate(self._kit / AUTHORITY_FILE, "authority")
        yield from free_bytes("fedpath_client_disk_free_bytes", self._folders)
        yield from gpus(dict(self.heard.gpu_peaks))
        state = self.health.look()
        for check in CHECKS:
            yield "fedpath_client_healthy", {"check": check}, float(state.wrong[check] is None)
        if watched.mailbox is not None:
            for outcome, count in dict(watched.mailbox.counts).items():
                yield CHILDREN.name, {"outcome": outcome}, float(count)
