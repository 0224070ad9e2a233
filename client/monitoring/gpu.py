"""What can be seen of this machine's GPUs without disturbing them."""

import importlib
from collections.abc import Iterator, Mapping

import torch

from fedpath.core.monitoring.metrics import Series

_MEMORY, _BUSY = "fedpath_client_gpu_memory_bytes", "fedpath_client_gpu_utilization_ratio"


def gpus(peaks: Mapping[str, float]) -> Iterator[Series]:
    """Give memory and work of each GPU that torch sees.

    Asking a GPU that this process does not use would take a few hundred MB of it, so there only NVML is asked, where
    its Python package (nvidia-ml-py) is installed.

    Args:
        peaks: most bytes that child processes held, by the GPU's number.
    """
    if not torch.cuda.is_available():
        return
    ours = torch.cuda.current_device() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    for number in range(torch.cuda.device_count()):
        gpu, peak = str(number), peaks.get(str(number), 0.0)
        if number == ours:
            free, total = torch.cuda.mem_get_info(number)
            peak = max(peak, float(torch.cuda.max_memory_allocated(number)))
            yield _MEMORY, {"gpu": gpu, "kind": "used"}, float(total - free)
            yield _MEMORY, {"gpu": gpu, "kind": "total"}, float(total)
        if peak:
            yield _MEMORY, {"gpu": gpu, "kind": "peak"}, peak
        yield from _by_nvml(number, memory=number != ours)


def _by_nvml(number: int, *, memory: bool) -> Iterator[Series]:
    """Give what NVML says of a GPU; nothing where it, or its package, is not there or does not know."""
    try:
        error: type[Exception] = importlib.import_module("pynvml").NVMLError
    except ImportError:
        return
    gpu = str(number)
    try:
        if memory:
            yield _MEMORY, {"gpu": gpu, "kind": "used"}, float(torch.cuda.device_memory_used(number))
        yield _BUSY, {"gpu": gpu}, torch.cuda.utilization(number) / 100  # not known of a slice of a GPU (MIG)
    except (error, RuntimeError):
        return
