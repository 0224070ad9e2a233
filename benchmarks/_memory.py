"""How much memory a piece of work takes at its peak, measured in a process of its own."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

_MB = 1000**2


def peak_rise_mb(prepare: Callable[..., Callable[[], Any]], *arguments: Any) -> float:
    """Return by how many MB the resident memory of a fresh process rises at most while it works.

    Args:
        prepare: called with ``arguments`` in the new process; returns the work to be measured. What it leaves in memory
            (inputs, imports) is not counted. A function of a module, so that the process can find it.
        arguments: numbers and strings.
    """
    return _in_own_process(prepare, arguments)[1]


def peak_mb(prepare: Callable[..., Callable[[], Any]], *arguments: Any) -> float:
    """Return the largest resident memory in MB of a fresh process that does the work, everything counted."""
    return _in_own_process(prepare, arguments)[0]


def _in_own_process(prepare: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...]) -> tuple[float, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (prepare, arguments))


def _measure(prepare: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...]) -> tuple[float, float]:
    work = prepare(*arguments)
    # Linux: 5 resets the high-water mark to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    work()
    peak = _status("VmHWM")
    return peak / _MB, (peak - before) / _MB


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    (value,) = (line.split()[1] for line in lines if line.startswith(f"{key}:"))
    return float(value) * 1024
