"""Which estimator `[aggregation]` asks for, and where it runs."""

from fedpath.core.config.federated import AggregationSection
from fedpath.core.exchange.wire import Arrays
from fedpath.server.aggregation.blockwise import Blockwise
from fedpath.server.aggregation.mean import ArrivalMean, mean
from fedpath.server.aggregation.updates import Combiner


def sites_needed(settings: AggregationSection) -> int:
    """Return the updates without which the estimator says nothing."""
    f = settings.byzantine
    match settings.combine:
        case "trimmed-mean":
            return 2 * f + 1
        case "krum" | "multi-krum":
            return 2 * f + 3
        case "bulyan":
            return 4 * f + 3
        case _:
            return 1


def choose(reference: Arrays, settings: AggregationSection) -> Combiner:
    """Return the estimator.

    Args:
        reference: the round's model.
        settings: `[aggregation]`.

    Raises:
        ConfigError: the engine is not installed.
    """
    if settings.combine == "mean" and settings.order == "arrival" and settings.engine == "local":
        return ArrivalMean(reference)
    return Blockwise(reference, mean, together=False)
