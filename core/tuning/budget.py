"""How much memory there is for fine-tuning, and training within it: a plan that falls short is tightened once.

On a GPU torch's allocator is capped, so that a plan's mistake ends in an error here and not in another process's lack
of memory. A CPU has no such cap: counting tensors there would pass every operation through Python (`account`), so it is
done where plans are checked against reality, not where models are trained.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from fedpath.core.config.site import ComputeSection
from fedpath.core.errors import ConfigError
from fedpath.core.tuning.choice import MemoryChoice
from fedpath.core.tuning.plan import GB, Plan
from fedpath.core.tuning.predict import CONTEXT

T = TypeVar("T")

_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def budget_of(compute: ComputeSection, device: torch.device | str) -> int:
    """Return how many bytes fine-tuning may use on ``device``.

    That is ``compute.vram_gb``, but no more than a GPU has; without it all of the GPU's, or half of the memory that is
    free on a computer without one: slides are read there at the same time.
    """
    device = torch.device(device)
    stated = None if compute.vram_gb is None else int(compute.vram_gb * GB)
    if device.type == "cuda":
        there = _card_bytes(device)
        return there if stated is None else min(stated, there)
    return stated or available_memory() // 2


def available_memory() -> int:
    """Return the bytes of memory that this machine, or the container around this process, has free."""
    free = torch.iinfo(torch.int64).max
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    for most, used in _CGROUPS:
        if most.is_file() and used.is_file() and most.read_text().strip().isdigit():
            free = min(free, int(most.read_text()) - int(used.read_text()))
    return max(free, 0)


def within_budget(
    attempt: Callable[[MemoryChoice], T],
    plan: Plan,
    *,
    device: torch.device | str,
    tightened: Callable[[Plan], None] = lambda _: None,
) -> T:
    """Return what ``attempt`` returns under the plan's choice; if memory runs out, under the tightened one.

    Args:
        attempt: called with a choice, once or twice. It must start from the same state and seed each time, and leave
            nothing on the device when it raises.
        plan: as ``plan_memory`` gives it.
        device: where it trains; a GPU is capped at the plan's budget meanwhile.
        tightened: told the second plan before it is tried.

    Raises:
        ConfigError: there is no leaner way, or memory runs out again.
    """
    device = torch.device(device)
    with _capped(device, plan.budget_bytes):
        try:
            return attempt(plan.choice)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
        # Only here, with the error and the frames that it held on to gone, is the memory free.
        _release(device)
        second = plan.tighter()
        if second is None:
            raise _hopeless(plan, "and no leaner way is left")
        tightened(second)
        try:
            return attempt(second.choice)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
    _release(device)
    raise _hopeless(second, "and before under a larger plan")


def _is_out_of_memory(error: BaseException) -> bool:
    """Tell; torch has no type of its own for a CPU whose memory is full."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def _hopeless(plan: Plan, more: str) -> ConfigError:
    choice = plan.choice
    return ConfigError(
        f"out of memory with {choice.patches} patches a slide in micro-batches of {choice.micro_batch}, "
        f"{plan.peak_bytes / GB:.2f} GB predicted of {plan.budget_bytes / GB:.2f} GB, {more}",
        remedy="see whether other programs use the device's memory; then lower compute.vram_gb in site.toml to what is "
        "really free, so that the plan takes fewer patches",
    )


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def _capped(device: torch.device, budget_bytes: int) -> Iterator[None]:
    """Let torch's allocator take no more of a GPU than the budget leaves beside the process's context."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.empty_cache()
    share = (budget_bytes - CONTEXT) / _card_bytes(device)
    # By index: it takes no plain "cuda".
    torch.cuda.set_per_process_memory_fraction(min(1.0, max(0.0, share)), device.index)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device.index)


def _card_bytes(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).total_memory
