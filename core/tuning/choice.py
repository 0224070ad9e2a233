"""What a memory plan decides and a tuner obeys."""

from dataclasses import dataclass
from typing import Literal

from fedpath.core.training.precision import Chosen

Recompute = Literal["none", "upper", "whole"]
RECOMPUTE: tuple[Recompute, ...] = ("none", "upper", "whole")
"""From the cheapest in compute to the leanest."""


@dataclass(frozen=True, slots=True)
class MemoryChoice:
    """How a slide's patches pass through the encoder in training."""

    patches: int
    """K, patches of a slide; a slide with fewer gives all it has."""
    micro_batch: int
    """M, patches that pass through the encoder at a time at most."""
    recompute: Recompute
    """What the forward pass keeps of a micro-batch for the backward pass, and so what is computed twice: "none" keeps
    all activations of the trained stages; "upper" what enters the trained stages, which are computed again; "whole"
    nothing but the pixels, so the frozen stages are computed again too."""
    precision: Chosen = "float32"
    offload: bool = False
    """The optimizer's states lie in the computer's memory instead of the GPU's; DeepSpeed only."""

    def __post_init__(self) -> None:
        """Refuse sizes below 1."""
        if self.patches < 1 or self.micro_batch < 1:
            raise ValueError(f"{self.patches} patches in micro-batches of {self.micro_batch}: both must be at least 1")
