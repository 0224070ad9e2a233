"""The engine that site.toml asks for, held against what is installed and what the machine has."""

from importlib.metadata import PackageNotFoundError, version

import torch

from fedpath.core.config.site import ComputeSection
from fedpath.core.errors import ConfigError
from fedpath.core.training.engines.base import TORCH, EngineSettings

OLDEST = (0, 19, 8)
"""Of DeepSpeed: older ones cannot leave it to the caller how many bags make a step."""


def engine_settings(compute: ComputeSection, device: torch.device | str, *, offload: bool = False) -> EngineSettings:
    """Return how to train under a site.toml's [compute] on ``device``.

    DeepSpeed is looked for, not imported: only the processes that train with it do that.

    Args:
        compute: the section.
        device: "cpu" or "cuda", as ``choose_device`` gives it.
        offload: keep the optimizer's state in the CPU's memory, where the engine can.

    Raises:
        ConfigError: DeepSpeed is asked for and is not installed or too old, or there are fewer GPUs than processes.
    """
    if compute.engine == "torch":
        return TORCH
    _check_installed()
    gpus = torch.cuda.device_count() if torch.device(device).type == "cuda" else None
    processes = compute.deepspeed.processes or gpus or 1
    if gpus is not None and processes > gpus:
        raise ConfigError(
            f"site.toml asks for {processes} processes of DeepSpeed, and torch finds {gpus} GPUs",
            remedy="set compute.deepspeed.processes to the number of GPUs at most, or leave it out",
        )
    stage = compute.deepspeed.zero_stage
    if offload and stage == 0:
        raise ConfigError(
            "DeepSpeed's stage 0 cannot keep the optimizer's state in the CPU's memory, which fine-tuning needs here",
            remedy="set compute.deepspeed.zero_stage = 1",
        )
    return EngineSettings("deepspeed", stage, processes, offload)


def _check_installed() -> None:
    """Raise ConfigError unless a DeepSpeed that is new enough is installed."""
    oldest = ".".join(map(str, OLDEST))
    try:
        found = version("deepspeed")
    except PackageNotFoundError:
        raise ConfigError(
            "site.toml asks for engine 'deepspeed', which is not installed",
            remedy='pip install "fedpath[deepspeed]", or set compute.engine = "torch"',
        ) from None
    numbers = tuple(int(part) for part in found.split("+")[0].split(".")[:3] if part.isdigit())
    if numbers < OLDEST:
        raise ConfigError(
            f"site.toml asks for engine 'deepspeed'; {found} is installed, {oldest} is needed",
            remedy=f'pip install "deepspeed>={oldest}", or set compute.engine = "torch"',
        )
