"""Memory for passes over a bag in chunks: large arrays that the next step gets again, buffers that serve every chunk.

Touching fresh memory costs a page fault for every 4 KiB, in a virtual machine a quarter of a second a gigabyte: with a
new array for every intermediate of every chunk, a third of a pooling step. On a GPU torch keeps what is freed for the
next step; on a CPU it gives it back to the system. So here large arrays on a CPU are kept too, and lie in huge pages.
What is kept is what was needed at once at most: for a slide of 50,000 patches some 200 MB.
"""

import mmap
import threading
import weakref
from math import prod

import torch
from torch import Tensor

_LARGE = 2**21
_unused: list[mmap.mmap] = []
_taking = threading.Lock()


def large_empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return an uninitialised tensor; on a CPU under Linux of kept memory, which is kept again when it is freed."""
    n_bytes = prod(shape) * dtype.itemsize
    if device.type != "cpu" or n_bytes < _LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    pages = _take(n_bytes)
    # The tensor holds on to this view of the pages, and the view's end gives them back.
    lent = memoryview(pages)
    weakref.finalize(lent, _unused.append, pages).atexit = False
    return torch.frombuffer(lent, dtype=dtype, count=prod(shape)).view(shape)


def _take(n_bytes: int) -> mmap.mmap:
    """Return the smallest unused pages that suffice; if none do, new ones in the place of the largest."""
    with _taking:
        enough = [pages for pages in _unused if len(pages) >= n_bytes]
        if enough:
            pages = min(enough, key=len)
            _unused.remove(pages)
            return pages
        if _unused:
            _unused.remove(max(_unused, key=len))
    pages = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


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
