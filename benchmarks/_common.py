"""What every benchmark shares: the machine in words, a table, and the JSON line at the end."""

import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table


def machine() -> str:
    """Return the processor, cores and memory in words."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    model = next(names, platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GB"


def report(
    name: str, figures: Mapping[str, float], ratios: Mapping[str, float], bars: Mapping[str, str], *, quick: bool
) -> None:
    """Print a table for readers and, as the last line, one JSON object for programs."""
    table = Table(title=f"{name}{' (quick)' if quick else ''}: {machine()}")
    table.add_column("figure")
    table.add_column("measured", justify="right")
    table.add_column("bar")
    for key, value in {**figures, **ratios}.items():
        table.add_row(key, f"{value:.4g}", bars.get(key, ""))
    Console().print(table)
    print_line(name, figures, ratios, quick=quick)


def print_line(name: str, figures: Mapping[str, float], ratios: Mapping[str, float], *, quick: bool) -> None:
    """Print one JSON object on a line of its own."""
    line = {"name": name, "machine": machine(), "quick": quick, "figures": dict(figures), "ratios": dict(ratios)}
    print(json.dumps(line))


def shared_data() -> Path:
    """Return the folder of small real data beside the repository, or what FEDPATH_SHARED_DATA names."""
    folder = Path(os.environ.get("FEDPATH_SHARED_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
    if not folder.is_dir():
        raise SystemExit(f"{folder}: no such folder; name the one with tables/musk1.csv in FEDPATH_SHARED_DATA")
    return folder


def take_turns(tasks: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Return the seconds of each task in each turn, after one that does not count.

    They take turns so that a busy moment of the machine hits all alike.
    """

    def timed(task: Callable[[], object]) -> float:
        started = time.perf_counter()
        task()
        return time.perf_counter() - started

    return take_turns_timed({name: partial(timed, task) for name, task in tasks.items()}, turns)


def take_turns_timed(tasks: Mapping[str, Callable[[], float]], turns: int) -> dict[str, list[float]]:
    """As ``take_turns``, for tasks that return the seconds of what counts in them."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(turns + 1):
        for name, task in tasks.items():
            print(f"{name}: {f'turn {turn} of {turns}' if turn else 'warming up'}", file=sys.stderr, flush=True)
            measured = task()
            if turn:
                seconds[name].append(measured)
    return seconds


def write_block(page: Path, name: str, rows: Sequence[Sequence[str]]) -> None:
    """Replace the table between a page's markers ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``."""
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    lines = [f"| {' | '.join(row)} |\n" for row in rows]
    table = "".join([lines[0], "|---" * len(rows[0]) + "|\n", *lines[1:]])
    written, count = re.subn(
        f"({begin}).*?({end})", rf"\1\n{table}\n\2", page.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    if count != 1:
        raise SystemExit(f"{page}: no place for the table between {begin.strip()} and {end}")
    page.write_text(written, encoding="utf-8")
