"""What fine-tuning and encoding ask of a patch encoder: its input, and its layers as a sequence of stages."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

Hidden = tuple[Tensor, ...]
"""What one stage hands to the next; each tensor has B first."""


class PatchEncoder(nn.Module, ABC):
    """An encoder as stages that run one after the other.

    Lower stages can be frozen and run without keeping anything for a backward pass; upper ones be trained, or their
    activations be computed twice instead of kept. Evaluation and training are one: batch norm uses its stored
    statistics and nothing is dropped, so a patch's features never depend on the other patches of a batch.
    """

    width: int
    """D."""
    stage_names: tuple[str, ...]
    """From the pixels up."""

    @abstractmethod
    def prepare(self, rgb_BCHW: Tensor) -> Tensor:
        """Return the first stage's input of colours in 0…1: normalised, not resized."""

    @abstractmethod
    def run_stage(self, index: int, hidden: Hidden) -> Hidden:
        """Run one stage. The first one takes ``(prepare(rgb),)``, the last one returns ``(features_BD,)``."""

    @abstractmethod
    def stage_modules(self, index: int) -> list[nn.Module | nn.Parameter]:
        """Return the modules and parameters that belong to a stage; all stages' together are the whole encoder."""

    def run_stages(self, hidden: Hidden, first: int, last: int) -> Hidden:
        """Run the stages ``first`` ≤ i < ``last``."""
        for index in range(first, last):
            hidden = self.run_stage(index, hidden)
        return hidden

    def forward(self, rgb_BCHW: Tensor) -> Tensor:
        """Return features (B, D) of patches with colours in 0…1."""
        (features_BD,) = self.run_stages((self.prepare(rgb_BCHW),), 0, len(self.stage_names))
        return features_BD

    def train(self, mode: bool = True) -> "PatchEncoder":
        """Stay in evaluation mode, whatever is asked: see the class."""
        return super().train(False)
