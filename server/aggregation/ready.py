"""Compiling what a run's estimator needs before hospitals wait for it.

numba takes seconds, in which no other thread of the process gets far: a coordinator does that before it listens, or, of
a queue, before a run begins.
"""

import tempfile
from pathlib import Path

import numpy as np

from fedpath.core.config.federated import AggregationSection
from fedpath.core.exchange.stored import SMALL, ArrayFile, write_arrays
from fedpath.core.exchange.wire import Arrays
from fedpath.server.aggregation.choose import choose
from fedpath.server.aggregation.updates import Counted


def make_ready(settings: AggregationSection, model_bytes: int) -> None:
    """Combine as many updates as the estimator needs once, so that the next time takes what combining takes.

    Args:
        settings: `[aggregation]`.
        model_bytes: of the largest model that is to be combined. The mean of small ones needs nothing compiled.

    Raises:
        ConfigError: what the estimator needs is not installed.
    """
    mean = settings.combine == "mean"
    if settings.engine != "local" or (mean and (settings.order == "arrival" or model_bytes <= SMALL)):
        return
    # The mean of a file that is not mapped, as those of a large model are not.
    model: Arrays = {"group/array": np.zeros(SMALL // 4 + 1 if mean else 1, np.float32)}
    with tempfile.TemporaryDirectory(prefix="fedpath-") as folder:
        path = Path(folder) / "update.safetensors"
        with path.open("wb") as file:
            write_arrays(file, model)
        combiner = choose(model, settings)
        with ArrayFile(path) as arrays:
            for number in range(settings.updates_needed):
                combiner.add(Counted(str(number), arrays, {"group": 1.0}))
            combiner.result()
