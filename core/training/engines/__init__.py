"""What computes gradients and steps the weights: torch itself, or DeepSpeed in processes of its own."""

from fedpath.core.training.engines.base import TORCH, Engine, EngineSettings
from fedpath.core.training.engines.choose import engine_settings

__all__ = ["TORCH", "Engine", "EngineSettings", "engine_settings"]
