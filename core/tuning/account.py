"""How much memory tensors take, to the byte, on any device: what a computation holds at once at most.

On a GPU torch's allocator counts, and the process can be capped. On a CPU nothing does. Here every operation's results
are seen (a torch dispatch mode) and every storage's end (a weak reference): the sum of what is alive is the measured
peak of a CPU, and on fake tensors, which have shapes and no numbers, the predicted one of a step that was never run.

Only tensors count. What a kernel takes for itself while it runs is hidden here, as it is from torch's own counters on a
CPU. Every operation passes through Python, so this is for measuring and for tests, not for training.

torch has a tracker of its own, ``torch.distributed._tools.mem_tracker``. It is private, stops at frozen parameters (it
wants a hook on each), knows no limit, and keeps no course in time, without which nothing can be said of how the peak
grows with the number of patches.
"""

import weakref
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that are made inside of its ``with`` block, for as long as they live.

    Tensors from outside count once they are handed to ``add``; a bag mapped from a file never does.

    Args:
        limit: raise ``torch.OutOfMemoryError`` where more bytes than these are alive.
    """

    def __init__(self, limit: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.limit = limit
        self.live = 0
        """Bytes at the moment."""
        self.peak = 0
        """Bytes at most, so far."""
        self.course: list[int] = []
        """``live`` after each operation."""
        self._known: dict[int, weakref.ref[Any]] = {}

    def add(self, *modules: nn.Module, tensors: Iterable[Tensor] = ()) -> None:
        """Count tensors that are there already: parameters, their gradients and buffers of modules, and others."""
        for module in modules:
            for tensor in [*module.parameters(), *module.buffers()]:
                self._count(tensor)
                if tensor.grad is not None:
                    self._count(tensor.grad)
        for tensor in tensors:
            self._count(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it made."""
        kwargs = kwargs or {}
        # Memory that torch did not make, such as kept pages, is seen first where it is written to.
        for schema, value in zip(func._schema.arguments, args, strict=False):
            if schema.is_write:
                self._count_all(value)
        for schema in func._schema.arguments:
            if schema.is_write and schema.name in kwargs:
                self._count_all(kwargs[schema.name])
        # A view of what does not count does not count either.
        outside = {_key(tensor) for tensor in _tensors((args, kwargs))} - self._known.keys()
        result = func(*args, **kwargs)
        self._count_all(result, outside)
        self.course.append(self.live)
        return result

    def _count_all(self, values: Any, outside: Collection[int] = ()) -> None:
        for tensor in _tensors(values):
            if _key(tensor) not in outside:
                self._count(tensor)

    def _count(self, tensor: Tensor) -> None:
        key, storage = _key(tensor), tensor.untyped_storage()
        if key in self._known:
            return
        size = storage.nbytes()

        def end(_: Any) -> None:
            if self._known.pop(key, None) is not None:
                self.live -= size

        self._known[key] = weakref.ref(storage, end)
        self.live += size
        if self.limit is not None and self.live > self.limit:
            raise torch.OutOfMemoryError(f"{self.live} bytes are alive where {self.limit} are allowed")
        self.peak = max(self.peak, self.live)


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _tensors(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
