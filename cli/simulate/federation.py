"""What a simulation changes in federation.toml: who takes part, how many must, and that nobody waits for the clock."""

import math
from collections.abc import Sequence
from typing import Any

from fedpath.core.config import FederationConfig
from fedpath.core.config.stages import EncodeStage
from fedpath.core.errors import ConfigError

_FOREVER_S = 1e7
"""Hospitals share the cores of one machine: that one takes long says nothing about a hospital, so nobody is late."""


def site_names(count: int) -> list[str]:
    """Return site-001, site-002, …, with as many digits as the last one needs, at least three."""
    width = max(3, len(str(count)))
    return [f"site-{number:0{width}d}" for number in range(1, count + 1)]


def simulated(config: FederationConfig, sites: Sequence[str], *, seed: int | None = None) -> FederationConfig:
    """Return the federation of a simulation.

    `server.min_sites` keeps its share of the hospitals; where the file leaves it out it is half of them, so that a
    hospital that fails does not end the run. Deadlines of the file, and waiting for hospitals to come back, are off.

    Args:
        config: federation.toml.
        sites: the simulated hospitals.
        seed: in place of the file's.

    Raises:
        ConfigError: `local.learning_rate_scale` names a hospital that is not simulated.
    """
    known, stated = len(config.federation.sites), config.server.min_sites
    needed = math.ceil(len(sites) * (0.5 if stated is None else stated / known))
    if unknown := sorted(config.local.learning_rate_scale.keys() - set(sites)):
        raise ConfigError(
            f"local.learning_rate_scale names {unknown[0]}, which is not among the simulated hospitals",
            remedy=f"remove it there, or simulate that hospital with --site {unknown[0]}=…/site.toml",
        )
    federation: dict[str, Any] = {"sites": list(sites)}
    if seed is not None:
        federation["seed"] = seed
    waits = {"grace_s": 0.0, "join_timeout_s": _FOREVER_S, "round_timeout_s": _FOREVER_S}
    return config.model_copy(
        update={
            "federation": config.federation.model_copy(update=federation),
            "server": config.server.model_copy(update={"min_sites": needed, **waits}),
            "deadline": config.deadline.model_copy(update={"floor_s": _FOREVER_S, "quorum_wait_s": 0.0}),
            "stage": [
                stage.model_copy(update={"timeout_s": _FOREVER_S}) if isinstance(stage, EncodeStage) else stage
                for stage in config.stage
            ],
        }
    )
