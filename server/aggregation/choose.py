"""Which estimator `[aggregation]` asks for, and where it runs."""

from importlib.util import find_spec

from fedpath.core.config.federated import AggregationSection
from fedpath.core.errors import ConfigError
from fedpath.core.exchange.wire import Arrays
from fedpath.server.aggregation.blocks import Engine, LocalPasses
from fedpath.server.aggregation.blockwise import Blockwise
from fedpath.server.aggregation.bydistance import ByDistance
from fedpath.server.aggregation.distances import BulyanSelection, Krum, geometric_median
from fedpath.server.aggregation.mean import ArrivalMean, mean
from fedpath.server.aggregation.order import NearestMean, TrimmedMean, median
from fedpath.server.aggregation.updates import Combiner


def check_installed(settings: AggregationSection) -> None:
    """Check that what the estimator needs is installed.

    Raises:
        ConfigError: naming the key.
    """
    if settings.engine == "ray" and find_spec("ray") is None:
        raise ConfigError(
            "aggregation.engine = 'ray' needs Ray, which is not installed",
            remedy="pip install 'fedpath[ray]', or take the key out",
        )
    if settings.combine != "mean" and find_spec("numba") is None:
        raise ConfigError(
            f"aggregation.combine = '{settings.combine}' needs numba, which is not installed",
            remedy="pip install 'fedpath[server]'",
        )


def choose(reference: Arrays, settings: AggregationSection, engine: Engine = LocalPasses) -> Combiner:
    """Return the estimator.

    Args:
        reference: the round's model.
        settings: `[aggregation]`.
        engine: where the updates' files are gone over.

    Raises:
        ConfigError: what it needs is not installed.
    """
    check_installed(settings)
    if settings.combine == "mean" and settings.order == "arrival" and settings.engine == "local":
        return ArrivalMean(reference)
    passes, needed = engine(reference), settings.updates_needed
    match settings.combine:
        case "mean":
            return Blockwise(reference, mean, together=False, passes=passes)
        case "median":
            return Blockwise(reference, median, needed=needed, passes=passes)
        case "trimmed-mean":
            return Blockwise(reference, TrimmedMean(settings.byzantine), needed=needed, passes=passes)
        case "krum":
            return ByDistance(reference, Krum(settings.byzantine), needed=needed, passes=passes)
        case "multi-krum":
            return ByDistance(reference, Krum(settings.byzantine, settings.keep), needed=needed, passes=passes)
        case "bulyan":
            selection, last = BulyanSelection(settings.byzantine), NearestMean(2 * settings.byzantine)
            return ByDistance(reference, selection, last, together=True, needed=needed, passes=passes)
        case "geometric-median":
            return ByDistance(reference, geometric_median, chooses=False, passes=passes)
