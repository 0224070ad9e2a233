"""Where to train: what site.toml asks for, held against what the machine has."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from fedpath.core.errors import ConfigError


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> str:
    """Return "cpu" or "cuda"; "auto" takes a GPU where torch finds one.

    Raises:
        ConfigError: "cuda" is asked for and there is none.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "site.toml asks for device 'cuda', but torch finds no GPU",
            remedy='install a CUDA build of torch and the driver, or set compute.device = "cpu"',
        )
    if wanted == "cuda":
        # Read when cuBLAS starts: without a workspace of fixed size its products differ from run to run.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return wanted


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Let torch take its reproducible kernels on a GPU; a kernel that has none says so in a warning.

    On a CPU there is nothing to do: with the same number of threads its sums keep one order.
    """
    if device.type != "cuda":
        yield
        return
    enabled, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    # A module whose attributes are properties, which type checkers cannot see.
    debugging: Any = torch.utils.deterministic
    fill = debugging.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    debugging.fill_uninitialized_memory = False  # a help for debugging, at the cost of a write
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        debugging.fill_uninitialized_memory = fill
