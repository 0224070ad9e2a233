"""Updates become one model: checked and measured when they come, combined block by block when the round is over.

A parameter group is combined over the sites that sent it; a group that nobody sent keeps the reference's values. The
updates lie in files (`fedpath.server.spool`) and are never in memory as a whole: what combining costs is the reference,
the result and a few blocks, for any number of sites and for every estimator.
"""

from fedpath.core.config.federated import AggregationSection
from fedpath.core.exchange.wire import Arrays
from fedpath.server.aggregation.blocks import Engine, LocalPasses
from fedpath.server.aggregation.choose import check_installed, choose
from fedpath.server.aggregation.clip import Clipped
from fedpath.server.aggregation.measure import measure
from fedpath.server.aggregation.ready import make_ready
from fedpath.server.aggregation.updates import Combined, Combiner, Counted

__all__ = [
    "Combined",
    "Combiner",
    "Counted",
    "Engine",
    "LocalPasses",
    "check_installed",
    "combiner",
    "make_ready",
    "measure",
]


def combiner(reference: Arrays, settings: AggregationSection, engine: Engine = LocalPasses) -> Combiner:
    """Return what combines the updates of one round.

    Args:
        reference: the global model that the round started from: float32, named "group/parameter".
        settings: `[aggregation]`.
        engine: where the updates' files are gone over: `fedpath.server.aggregation.engine.engine_of`.

    Raises:
        ConfigError: what the estimator needs is not installed.
    """
    chosen = choose(reference, settings, engine)
    return chosen if settings.clip_norm is None else Clipped(chosen, reference, settings.clip_norm)
