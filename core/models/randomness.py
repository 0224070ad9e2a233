"""Randomness from a seed alone, whatever ran before in the process, and without a trace afterwards."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

DRAWS = threading.RLock()
"""Held by the thread that draws from torch's global generators: several runs may build their models in one process."""


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed torch's global generators inside the block, and restore their states after it.

    Args:
        seed: 0 ≤ seed < 2**63.
        device: a CUDA device whose generator is seeded too; the CPU's always is.
    """
    device = torch.device(device)
    with DRAWS, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # Not torch.manual_seed: that would also seed devices whose state is not restored.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
