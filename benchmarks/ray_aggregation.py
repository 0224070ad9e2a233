"""Combining on Ray beside combining in the coordinator, on one host: what `[aggregation] engine = "ray"` costs there.

8 × 100 MB float32, mean and median; both engines get the same files and give the same bits. The actors open the files
themselves, as they do on one host. "Once a run" is starting Ray and the actors.

`python benchmarks/ray_aggregation.py [--quick] [--write]` interleaves the turns and prints medians; `--write` puts the
table into docs/aggregation.md.
"""

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

from _common import report, take_turns, write_block
from aggregation import write_updates

from fedpath.core.config.federated import AggregationSection
from fedpath.core.events import EventLog
from fedpath.core.exchange.stored import ArrayFile
from fedpath.core.exchange.wire import Arrays, hash_arrays
from fedpath.server.aggregation import Counted, Engine, LocalPasses, combiner
from fedpath.server.aggregation.engine import engine_of

_PAGE = Path(__file__).parents[1] / "docs" / "aggregation.md"
_SITES = 8


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10 MB updates, one turn")
    parser.add_argument("--write", action="store_true", help="write the table into docs/aggregation.md")
    options = parser.parse_args()
    megabytes, turns = (10, 1) if options.quick else (100, 3)
    cores = len(os.sched_getaffinity(0))
    figures: dict[str, float] = {"update_mb": megabytes, "cores": cores}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        write_updates(folder, megabytes)
        updates, reference = _updates(folder)
        engines: dict[str, Engine] = {"local": LocalPasses}
        for workers in sorted({1, cores, 2 * cores}):
            settings = AggregationSection(engine="ray", ray_workers=workers)
            began = time.perf_counter()
            engine = stack.enter_context(engine_of(settings, EventLog(), threading.Event()))
            figures[f"connect_{workers}_s"] = time.perf_counter() - began
            began = time.perf_counter()
            _combine(engine, "mean", updates, reference)
            figures[f"first_{workers}_s"] = time.perf_counter() - began
            engines[f"ray_{workers}"] = engine
        tasks: dict[str, Callable[[], object]] = {
            f"{combine}_{name}": partial(_combine, engine, combine, updates, reference)
            for combine in ("mean", "median")
            for name, engine in engines.items()
        }
        seconds = take_turns(tasks, turns)
        figures |= {f"{name}_s": median(times) for name, times in seconds.items()}
        same = all(
            len({hash_arrays(_combine(engine, combine, updates, reference)) for engine in engines.values()}) == 1
            for combine in ("mean", "median")
        )
    ratios = {
        f"{combine}_local_vs_{name}": figures[f"{combine}_{name}_s"] / figures[f"{combine}_local_s"]
        for combine in ("mean", "median")
        for name in engines
        if name != "local"
    }
    ratios["same_bits"] = float(same)
    report("ray_aggregation", figures, ratios, {"same_bits": "= 1"}, quick=options.quick)
    if options.write:
        rows = [["engine", "mean", "median", "once a run"]]
        for name in engines:
            times = [f"{figures[f'{combine}_{name}_s']:.2f} s" for combine in ("mean", "median")]
            workers = name.removeprefix("ray_")
            once = (
                "–" if name == "local" else f"{figures[f'connect_{workers}_s'] + figures[f'first_{workers}_s']:.0f} s"
            )
            title = "local" if name == "local" else f"ray, {workers} actor{'' if workers == '1' else 's'}"
            rows.append([title, *times, once])
        write_block(_PAGE, "ray_aggregation", rows)


def _updates(folder: Path) -> tuple[list[Counted], Arrays]:
    """Return the updates, and a model for them to be updates of."""
    files = [ArrayFile(folder / f"{number}.safetensors") for number in range(_SITES)]
    updates = [Counted(f"site-{number}", file, {"image": 100.0 + number}) for number, file in enumerate(files)]
    return updates, {name: files[0].array(name) for name in files[0].names}


def _combine(engine: Engine, combine: str, updates: list[Counted], reference: Arrays) -> Arrays:
    adding = combiner(reference, AggregationSection(combine=combine), engine)  # type: ignore[arg-type]
    for update in updates:
        adding.add(update)
    return adding.result().arrays


if __name__ == "__main__":
    main()
