"""Memory for passes over a bag in chunks: large arrays in huge pages, and buffers that serve every chunk.

Touching fresh memory costs a page fault for every 4 KiB, about a quarter of a second a gigabyte: with a new array for
every intermediate of every chunk, a third of a pooling step.
"""

import mmap
from math import prod

import torch
from torch import Tensor

_LARGE = 2**21


def large_empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return an uninitialised tensor; on a CPU under Linux in huge pages, which have one fault for 2 MiB."""
    n_bytes = prod(shape) * dtype.itemsize
    if device.type != "cpu" or n_bytes < _LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


class Scratch:
    """Buffers by name, for as long as one pass; of ``dtype`` where a call names no other."""

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self._device = device
        self._dtype = dtype
        self._buffers: dict[str, Tensor] = {}
        self._views: dict[tuple[str, tuple[int, ...], torch.dtype], Tensor] = {}

    def __call__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        """Return an uninitialised tensor. It overwrites what was handed out under the name before."""
        dtype = dtype or self._dtype
        key = (name, shape, dtype)
        if key not in self._views:
            n_bytes = prod(shape) * dtype.itemsize
            if name not in self._buffers or len(self._buffers[name]) < n_bytes:
                # Views of the buffer that is too small would keep it alive.
                self._views = {seen: view for seen, view in self._views.items() if seen[0] != name}
                self._buffers[name] = large_empty((n_bytes,), torch.uint8, self._device)
            self._views[key] = self._buffers[name][:n_bytes].view(dtype).view(shape)
        return self._views[key]
