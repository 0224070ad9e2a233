"""Combining the updates of 8, 32 and 64 hospitals of 100 MB float32 each: fedpath beside Flower, and beside the limit.

Both get the same updates as they arrive: serialised. Flower's are in memory (it holds every reply there), fedpath's in
files, as the coordinator keeps them, which also has the round's model in memory. `mean_vs_bandwidth` is the time of the
mean over that of the least memory traffic it needs, measured on the same files with as many threads: every byte of
every update read once into a core's cache, and a model's worth of memory written. The robust estimators are those of
`[aggregation]` beside Flower's strategies, at 8 hospitals of which one may lie; Flower has no geometric median. Memory
is that of a fresh process, above what it had before the model was read. numba compiles in a turn that does not count;
`compile_s` says how long.

`python benchmarks/aggregation.py [--quick] [--write]` interleaves the turns and prints medians; `--write` puts the
tables into docs/aggregation.md.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from _common import report, take_turns, take_turns_timed, write_block
from _memory import peak_rise_mb
from _robust import SETTINGS, combine, files_of, flower_s, serialised, strategies
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from numba import njit
from numpy.typing import NDArray
from safetensors.torch import save_file

from fedpath.core.config.federated import AggregationSection
from fedpath.core.exchange.stored import BLOCK, write_arrays
from fedpath.core.exchange.wire import Arrays
from fedpath.server.aggregation import make_ready
from fedpath.server.aggregation.infiles import PIECE, read

_MB = 1_000_000
_FILES = 8
"""Different updates; more hospitals send the same ones again, so that they fit on a small disk."""
_SITES, _MANY = 8, 64
_PAGE = Path(__file__).parents[1] / "docs" / "aggregation.md"
_ORDERS = {order: AggregationSection(order=order) for order in ("sites", "arrival")}  # type: ignore[arg-type]
_BARS = {
    "mean_vs_flower": "≥ 4",
    "mean_vs_bandwidth": "≤ 1.3",
    "peak_64_vs_4_sites": "≤ 1.1",
    "peak_vs_model": "≤ 2.5",
    "median_vs_flower": "≥ 10",
    "trimmed_vs_flower": "≥ 10",
    "krum_vs_flower": "≥ 5",
    "multi_krum_vs_flower": "≥ 5",
    "bulyan_vs_flower": "≥ 5",
    "robust_peak_vs_model": "≤ 2.5",
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10 MB updates, one turn")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/aggregation.md")
    options = parser.parse_args()
    megabytes, turns = (10, 1) if options.quick else (100, 5)
    figures: dict[str, float] = {"update_mb": megabytes, "threads": len(os.sched_getaffinity(0))}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_updates(folder, megabytes)
        write_updates(folder / "small", 5)  # large enough to be read as large files are
        figures["compile_s"] = _compile_s(folder / "small")
        figures["compile_mean_mb"] = peak_rise_mb(_first_mean)
        ratios, rows = _mean(folder, megabytes, turns, figures)
        of_robust, robust_rows = _robust(folder, megabytes, turns, figures)
    report("aggregation", figures, ratios | of_robust, _BARS, quick=options.quick)
    if options.write:
        write_block(_PAGE, "aggregation", rows)
        write_block(_PAGE, "robust", robust_rows)


def _mean(
    folder: Path, megabytes: int, turns: int, figures: dict[str, float]
) -> tuple[dict[str, float], list[list[str]]]:
    """Measure the mean; return the ratios and the table."""
    rows = [["hospitals", "Flower", "fedpath", "as they arrive", "least traffic", "peak memory"]]
    model = _model(folder)
    for sites in (_SITES, 32, _MANY):
        files = files_of(folder, sites, _FILES)
        tasks: dict[str, Callable[[], object]] = {
            order: partial(combine, files, settings, model) for order, settings in _ORDERS.items()
        }
        tasks["bound"] = partial(_least_traffic, folder, sites)
        if sites == _SITES:  # 64 hospitals' replies would need 6.4 GB in Flower's memory
            tasks["flower"] = partial(aggregate_arrayrecords, _records(folder), "num-examples")
            for encoding in ("float16", "bfloat16"):
                files = files_of(folder / encoding, sites, _FILES)
                tasks[encoding] = partial(combine, files, _ORDERS["sites"], model)
        seconds = {what: median(times) for what, times in take_turns(tasks, turns).items()}
        figures |= {f"{what}_{sites}_s": value for what, value in seconds.items()}
        figures[f"peak_{sites}_mb"] = peak_rise_mb(_work, str(folder), sites, "mean")
        flower = f"{seconds['flower']:.2f} s" if "flower" in seconds else "–"
        times = [f"{seconds[what]:.3f} s" for what in ("sites", "arrival", "bound")]
        rows.append([str(sites), flower, *times, f"{figures[f'peak_{sites}_mb'] / megabytes:.2f} models"])
    for encoding in ("float16", "bfloat16"):
        rows.append([f"{_SITES}, {encoding}", "–", f"{figures[f'{encoding}_{_SITES}_s']:.3f} s", "–", "–", "–"])
    figures["peak_4_mb"] = peak_rise_mb(_work, str(folder), 4, "mean")
    ratios = {
        "mean_vs_flower": figures["flower_8_s"] / figures["sites_8_s"],
        "mean_vs_bandwidth": max(figures[f"sites_{n}_s"] / figures[f"bound_{n}_s"] for n in (_SITES, 32, _MANY)),
        "peak_64_vs_4_sites": figures["peak_64_mb"] / figures["peak_4_mb"],
        "peak_vs_model": max(figures[f"peak_{n}_mb"] for n in (4, _SITES, 32, _MANY)) / megabytes,
        "arrival_vs_sites_64": figures["arrival_64_s"] / figures["sites_64_s"],
    }
    return ratios, rows


def _robust(
    folder: Path, megabytes: int, turns: int, figures: dict[str, float]
) -> tuple[dict[str, float], list[list[str]]]:
    """Measure the robust estimators; return the ratios and the table."""
    files, many = files_of(folder, _SITES, _FILES), files_of(folder, _MANY, _FILES)
    held, model = serialised(files), _model(folder)
    tasks: dict[str, Callable[[], float]] = {}
    for what, settings in SETTINGS.items():
        tasks[what] = partial(_seconds, partial(combine, files, settings, model))
        tasks[f"{what}_{_MANY}"] = partial(_seconds, partial(combine, many, settings, model))
    for what, strategy in strategies(_SITES).items():
        tasks[f"{what}_flower"] = partial(flower_s, strategy, held)
    seconds = {what: median(times) for what, times in take_turns_timed(tasks, min(turns, 3)).items()}
    figures |= {f"{what}_s": value for what, value in seconds.items()}
    rows = [["8 hospitals", "Flower", "fedpath", "times faster", "64 hospitals", "peak memory, 8 and 64"]]
    ratios: dict[str, float] = {}
    for what, settings in SETTINGS.items():
        peaks = {sites: peak_rise_mb(_work, str(folder), sites, what) for sites in (_SITES, _MANY)}
        figures |= {f"{what}_peak_{sites}_mb": peak for sites, peak in peaks.items()}
        theirs = seconds.get(f"{what}_flower")
        if theirs is not None:
            ratios[f"{what}_vs_flower"] = theirs / seconds[what]
        compared = ["–", "–"] if theirs is None else [f"{theirs:.2f} s", f"{theirs / seconds[what]:.0f}"]
        own = [f"{seconds[what]:.2f} s", compared[1], f"{seconds[f'{what}_{_MANY}']:.2f} s"]
        memory = " and ".join(f"{peak / megabytes:.2f}" for peak in peaks.values()) + " models"
        rows.append([settings.combine, compared[0], *own, memory])
    peaks = [figures[f"{what}_peak_{sites}_mb"] for what in SETTINGS for sites in (_SITES, _MANY)]
    return ratios | {"robust_peak_vs_model": max(peaks) / megabytes}, rows


def write_updates(folder: Path, megabytes: int) -> None:
    """Write the updates' files: ten arrays each, in float32 and, in folders of their own, in half precision."""
    for encoding in ("float16", "bfloat16"):
        (folder / encoding).mkdir(parents=True)
    for number in range(_FILES):
        arrays, name = _draw(number, megabytes), f"{number}.safetensors"
        with (folder / name).open("wb") as file:
            write_arrays(file, arrays)
        for encoding, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
            halves = {key: torch.from_numpy(array).to(dtype) for key, array in arrays.items()}
            save_file(halves, folder / encoding / name)


def _draw(seed: int, megabytes: int) -> Arrays:
    random = np.random.default_rng(seed)
    rows = megabytes * _MB // 10 // 4 // 1000
    return {f"image/{layer}": random.standard_normal((rows, 1000), dtype=np.float32) for layer in range(10)}


def _model(folder: Path) -> Arrays:
    """Return a round's model, in memory."""
    with files_of(folder, 1, _FILES)[0] as file:
        return {name: file.array(name) for name in file.names}


def _records(folder: Path) -> list[RecordDict]:
    """Return the replies as Flower holds them: serialised arrays in memory."""
    return [
        RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 100 + number})})
        for number, arrays in enumerate(serialised(files_of(folder, _SITES, _FILES)))
    ]


def _compile_s(small: Path) -> float:
    """Return what the first use of every estimator costs this process, over that of the next."""
    files = files_of(small, _FILES, _FILES)
    first, second = ([_seconds(partial(combine, files, one)) for one in SETTINGS.values()] for _ in range(2))
    return sum(first) - sum(second)


def _first_mean() -> Callable[[], object]:
    """Return what makes a process ready for the mean of a large model."""
    return partial(make_ready, AggregationSection(), 100 * _MB)


def _seconds(task: Callable[[], object]) -> float:
    started = time.perf_counter()
    task()
    return time.perf_counter() - started


def _work(folder: str, sites: int, what: str) -> Callable[[], object]:
    """Return a whole round's combining, with the model in memory as a coordinator has it."""
    settings: Mapping[str, AggregationSection] = {"mean": AggregationSection()} | SETTINGS

    def work() -> None:
        files = files_of(Path(folder), sites, _FILES)
        combine(files, settings[what], _model(Path(folder)))

    # Libraries and threads are there, and loops are compiled.
    combine(files_of(Path(folder) / "small", _FILES, _FILES), settings[what])
    return work


def _least_traffic(folder: Path, sites: int) -> None:
    """Read every update once, and write a model's worth of memory."""
    files, threads = files_of(folder, sites, _FILES), len(os.sched_getaffinity(0))
    names = sorted(files[0].names)
    out = {name: np.empty(files[0].shape(name), np.float32).reshape(-1) for name in names}

    def work(part: Sequence[tuple[str, int]]) -> None:
        for name, start in part:
            places = [file.in_file(name, start) for file in files]
            files_N, offsets_N = np.array(places, np.int64).T.copy()
            assert _read_all(files_N, offsets_N, out[name][start : start + BLOCK])

    blocks = [(name, start) for name in names for start in range(0, out[name].size, BLOCK)]
    each = -(-len(blocks) // threads)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, [blocks[start : start + each] for start in range(0, len(blocks), each)]))


@njit(nogil=True)
def _read_all(files_N: NDArray[np.int64], offsets_N: NDArray[np.int64], out: NDArray[np.float32]) -> Any:
    """Read a block of every file, in pieces that stay in a core's cache, and set ``out`` to zero."""
    buffer, there = np.empty(PIECE, np.float32), True
    for start in range(0, out.size, PIECE):
        place = out[start : start + PIECE]
        for n in range(files_N.size):
            there &= read(files_N[n], offsets_N[n] + 4 * start, buffer[: place.size])
        for k in range(place.size):
            place[k] = 0.0
    return there


if __name__ == "__main__":
    main()
