"""Importing torch and flwr takes seconds, a fifth of which the garbage collector spends on objects that stay."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Import without collecting garbage in between; what is there afterwards is not looked at again."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
