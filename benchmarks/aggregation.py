"""Combining the updates of 8, 32 and 64 hospitals of 100 MB float32 each: fedpath beside Flower, and beside the limit.

Both get the same updates as they arrive: serialised. Flower's are in memory (it holds every reply there), fedpath's in
files, as the coordinator keeps them. `mean_vs_bandwidth` is the time of the mean over that of the least memory traffic
it needs, measured on the same files with as many threads: every number of every update read once (their largest is
looked for), and a model's worth of memory written. Memory is that of a fresh process, above what it had before the
model was read.

`python benchmarks/aggregation.py [--quick] [--write]` interleaves the turns and prints medians; `--write` puts the
table into docs/aggregation.md.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from _common import report, take_turns, write_block
from _memory import peak_rise_mb
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from fedpath.core.config.federated import AggregationSection
from fedpath.core.exchange.stored import BLOCK, ArrayFile, write_arrays
from fedpath.core.exchange.wire import Arrays
from fedpath.server.aggregation import Counted, combiner

_MB = 1_000_000
_FILES = 8
"""Different updates; more hospitals send the same ones again, so that they fit on a small disk."""
_PAGE = Path(__file__).parents[1] / "docs" / "aggregation.md"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10 MB updates, one turn")
    parser.add_argument("--write", action="store_true", help="write the table into docs/aggregation.md")
    options = parser.parse_args()
    megabytes, turns = (10, 1) if options.quick else (100, 5)
    threads = len(os.sched_getaffinity(0))
    figures: dict[str, float] = {"update_mb": megabytes, "threads": threads}
    ratios: dict[str, float] = {}
    rows = [["hospitals", "Flower", "fedpath", "as they arrive", "least traffic", "peak memory"]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_updates(folder, megabytes)
        for sites in (8, 32, 64):
            tasks = {
                "sites": partial(combine, folder, sites, "sites"),
                "arrival": partial(combine, folder, sites, "arrival"),
                "bound": partial(_least_traffic, folder, sites, threads),
            }
            if sites == 8:  # 64 hospitals' replies would need 6.4 GB in Flower's memory
                tasks["flower"] = partial(aggregate_arrayrecords, flower_records(folder, sites), "num-examples")
            seconds = {what: median(times) for what, times in take_turns(tasks, turns).items()}
            figures |= {f"{what}_{sites}_s": value for what, value in seconds.items()}
            figures[f"peak_{sites}_mb"] = peak_rise_mb(_work, str(folder), sites)
            flower = f"{seconds['flower']:.2f} s" if "flower" in seconds else "–"
            times = [f"{seconds[what]:.3f} s" for what in ("sites", "arrival", "bound")]
            rows.append([str(sites), flower, *times, f"{figures[f'peak_{sites}_mb'] / megabytes:.2f} models"])
        figures["peak_4_mb"] = peak_rise_mb(_work, str(folder), 4)
    ratios["mean_vs_flower"] = figures["flower_8_s"] / figures["sites_8_s"]
    ratios["mean_vs_bandwidth"] = max(figures[f"sites_{n}_s"] / figures[f"bound_{n}_s"] for n in (8, 32, 64))
    ratios["peak_64_vs_4_sites"] = figures["peak_64_mb"] / figures["peak_4_mb"]
    ratios["peak_vs_model"] = max(figures[f"peak_{n}_mb"] for n in (4, 8, 32, 64)) / megabytes
    ratios["arrival_vs_sites_64"] = figures["arrival_64_s"] / figures["sites_64_s"]
    bars = {
        "mean_vs_flower": "≥ 4",
        "mean_vs_bandwidth": "≤ 1.3",
        "peak_64_vs_4_sites": "≤ 1.1",
        "peak_vs_model": "≤ 2.5",
    }
    report("aggregation", figures, ratios, bars, quick=options.quick)
    if options.write:
        write_block(_PAGE, "aggregation", rows)


def write_updates(folder: Path, megabytes: int) -> None:
    """Write the updates' files: ten arrays each."""
    for number in range(_FILES):
        with (folder / f"{number}.safetensors").open("wb") as file:
            write_arrays(file, _draw(number, megabytes))


def _draw(seed: int, megabytes: int) -> Arrays:
    random = np.random.default_rng(seed)
    rows = megabytes * _MB // 10 // 4 // 1000
    return {f"image/{layer}": random.standard_normal((rows, 1000), dtype=np.float32) for layer in range(10)}


def flower_records(folder: Path, sites: int) -> list[RecordDict]:
    """Return the replies as Flower holds them: serialised arrays in memory."""
    records = []
    for number in range(sites):
        with ArrayFile(folder / f"{number % _FILES}.safetensors") as file:
            arrays = ArrayRecord({name: Array(np.array(file.array(name))) for name in sorted(file.names)})
        records.append(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 100 + number})}))
    return records


def combine(folder: Path, sites: int, order: str, reference: Arrays | None = None) -> Arrays:
    """Return the mean as the coordinator computes it; where there is no model yet, the first update is one."""
    files = [ArrayFile(folder / f"{number % _FILES}.safetensors") for number in range(sites)]
    if reference is None:
        reference = {name: files[0].array(name) for name in files[0].names}
    adding = combiner(reference, AggregationSection(order=order))  # type: ignore[arg-type]
    for number, file in enumerate(files):
        adding.add(Counted(f"site-{number:03d}", file, {"image": 100.0 + number}))
    return adding.result().arrays


def _work(folder: str, sites: int) -> Callable[[], object]:
    """Return a whole round's combining, with the model in memory as a coordinator has it."""

    def work() -> None:
        with ArrayFile(Path(folder) / "0.safetensors") as file:
            reference = {name: file.array(name).copy() for name in file.names}
        combine(Path(folder), sites, "sites", reference)

    combine(Path(folder), 1, "sites")  # libraries and threads are there
    return work


def _least_traffic(folder: Path, sites: int, threads: int) -> None:
    """Read every number of every update once, and write a model's worth of memory."""
    files = [ArrayFile(folder / f"{number % _FILES}.safetensors") for number in range(sites)]
    names = sorted(files[0].names)
    out = {name: np.empty(files[0].shape(name), np.float32) for name in names}

    def read(part: Sequence[tuple[str, int]]) -> None:
        torch.set_num_threads(1)
        buffer = np.empty(BLOCK, np.float32)
        for name, start in part:
            place = torch.from_numpy(out[name].reshape(-1)[start : start + BLOCK])
            for file in files:
                torch.from_numpy(file.block(name, start, start + BLOCK, buffer)).max()
            place.zero_()

    blocks = [(name, start) for name in names for start in range(0, out[name].size, BLOCK)]
    each = -(-len(blocks) // threads)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, [blocks[start : start + each] for start in range(0, len(blocks), each)]))


if __name__ == "__main__":
    main()
