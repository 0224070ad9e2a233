"""Where to train: what site.toml asks for, held against what the machine has."""

from typing import Literal

import torch

from fedpath.core.errors import ConfigError


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> str:
    """Return "cpu" or "cuda"; "auto" takes a GPU where torch finds one.

    Raises:
        ConfigError: "cuda" is asked for and there is none.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "site.toml asks for device 'cuda', but torch finds no GPU",
            remedy='install a CUDA build of torch and the driver, or set compute.device = "cpu"',
        )
    return wanted
