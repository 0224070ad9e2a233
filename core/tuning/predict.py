"""The memory of one training step, put together from what its parts were measured to need.

A step holds the weights, the optimizer's states and, in turn, what one of its phases needs most of:

- *forward*: what earlier micro-batches keep, and the last micro-batch's way up;
- *head*: what all micro-batches keep, the features of all patches, the head's own arrays and gradients;
- *backward*: what is still kept, a micro-batch's way down, the gradients of features and weights;
- *step*: the gradients alone.

The peak is the highest of these. What is one patch's share of it, and what is fixed, follows from `measure`.
"""

from dataclasses import dataclass, replace

from fedpath.core.config.model import ModelSection
from fedpath.core.config.stages import Patches, TuningSection
from fedpath.core.encoders.registry import blank_encoder, trainable_names
from fedpath.core.training.precision import Chosen
from fedpath.core.tuning.build import build_head
from fedpath.core.tuning.choice import MemoryChoice, Recompute
from fedpath.core.tuning.measure import Lines, PassMemory, measure_head, measure_pass

_FLOAT32 = 4
CONTEXT = 500_000_000
"""Bytes of a GPU that a process takes before its first tensor: the CUDA context and the loaded kernels of torch, cuBLAS
and cuDNN. torch's allocator does not see them. Between 300 and 600 MB by card and driver."""
WORKSPACE = 160_000_000
"""Bytes of torch's allocator that are no tensor of the step: cuBLAS takes 32 MiB (``CUBLAS_WORKSPACE_CONFIG``), and a
convolution of cuDNN what its algorithm asks for, some tens of MB at these sizes."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Bytes at the moment of the peak, by what they are for."""

    weights: int
    """Of encoder and head, in float32."""
    gradients: int
    """Of all that trains, as far as there are any by then."""
    optimizer: int
    """AdamW's two moments of all that trains."""
    kept: int
    """What micro-batches left for the backward pass."""
    micro_batch: int
    """What the micro-batch at work needs, without what it leaves."""
    head: int
    """Features of all patches, their gradients, and the head's own arrays."""
    context: int
    """What a GPU's process needs beside tensors."""

    @property
    def total(self) -> int:
        """The peak."""
        return self.weights + self.gradients + self.optimizer + self.kept + self.micro_batch + self.head + self.context


class Predictor:
    """Predicts the peak of any choice for one encoder, head and kind of device; measures each part once.

    Args:
        encoder_name: of the registry.
        head: bag model on top.
        tuning: what is trained.
        n_classes: C.
        patch_px: edge of a patch.
        cuda: whether the step runs on a GPU.
        deepspeed: whether DeepSpeed steps: what trains then has a second copy, in one flat array.
        accumulate_bags: bags a step learns from; from two on, gradients wait while the next bag is at work.
        drift_copies: copies of what trains that FedProx and SCAFFOLD hold (``fedpath.core.training.drift``).
    """

    def __init__(
        self,
        encoder_name: str,
        head: ModelSection,
        tuning: TuningSection,
        *,
        n_classes: int,
        patch_px: int,
        cuda: bool,
        deepspeed: bool = False,
        accumulate_bags: int = 1,
        drift_copies: int = 0,
    ) -> None:
        encoder = blank_encoder(encoder_name, tuning)
        trainable = set(trainable_names(encoder, encoder_name, tuning))
        sizes = {name: tensor.numel() * _FLOAT32 for name, tensor in encoder.state_dict().items()}
        self._head = build_head(head, encoder.width, n_classes, seed=0)
        self._of_head = sum(parameter.numel() * _FLOAT32 for parameter in self._head.parameters())
        self._of_encoder = sum(size for name, size in sizes.items() if name in trainable)
        self._weights = sum(sizes.values()) + self._of_head
        self._width = encoder.width
        self._encoder_name, self._patch_px = encoder_name, patch_px
        # Without its bounds, which change nothing of what is measured: plans share what they measure.
        self._tuning = tuning.model_copy(update={"patches": Patches()})
        self._cuda, self._deepspeed, self._accumulate_bags = cuda, deepspeed, accumulate_bags
        self._drift_copies = drift_copies
        self._heads: dict[tuple[int, Chosen], int] = {}

    def compute(self, choice: MemoryChoice) -> float:
        """Return the operations of a step relative to the step that computes nothing twice."""
        least = self._pass("none", choice.precision).flops_a_patch
        return self._pass(choice.recompute, choice.precision).flops_a_patch / least

    def parts(self, choice: MemoryChoice) -> Parts:
        """Return what the step of a slide with all K patches holds at its peak."""
        return max(self._phases(choice), key=lambda parts: parts.total)

    def _phases(self, choice: MemoryChoice) -> list[Parts]:
        measured = self._pass(choice.recompute, choice.precision)
        pieces = -(-choice.patches // choice.micro_batch)
        size = -(-choice.patches // pieces)  # of the largest: see `micro_batches`
        trained = self._of_encoder + self._of_head
        copies = trained if self._deepspeed and not choice.offload else 0
        copies += self._drift_copies * trained
        new_of_head = 0 if self._accumulate_bags > 1 else self._of_head
        always = Parts(
            weights=self._weights + copies,
            gradients=trained if self._accumulate_bags > 1 else 0,
            optimizer=0 if choice.offload else 2 * trained,
            kept=0,
            micro_batch=0,
            head=0,
            context=CONTEXT + WORKSPACE if self._cuda else 0,
        )
        kept = measured.kept
        kept_by_all = int(pieces * kept.a_T.item() + choice.patches * kept.b_T.item())
        kept_by_one = kept.peak(size)
        features = choice.patches * self._width * _FLOAT32

        def passing(lines: Lines, seen: int, held: int, down: bool) -> Parts:
            # ``seen``: whose leftovers its course counts, its own among them. On a way down it counts gradients too.
            beyond = lines.peak(size) - seen * kept_by_one
            gradients = min(self._of_encoder, beyond) if down else 0
            return replace(
                always,
                gradients=always.gradients + (gradients + new_of_head if down else 0),
                kept=kept_by_all if seen == 2 else kept_by_all - kept_by_one,
                micro_batch=beyond - gradients,
                head=held,
            )

        phases = [
            passing(measured.forward, 2, features, down=False),
            replace(always, kept=kept_by_all, head=self._head_peak(choice.patches, choice.precision)),
            passing(measured.backward, 2, 2 * features, down=True),
            replace(always, gradients=always.gradients or trained),
        ]
        return [*phases, passing(measured.backward_again, 1, 2 * features, down=True)] if pieces > 1 else phases

    def _pass(self, recompute: Recompute, precision: Chosen) -> PassMemory:
        return measure_pass(self._encoder_name, self._tuning, self._patch_px, recompute, precision)

    def _head_peak(self, patches: int, precision: Chosen) -> int:
        key = (patches, precision)
        if key not in self._heads:
            self._heads[key] = measure_head(self._head, self._width, *key, accumulate=self._accumulate_bags > 1)
        return self._heads[key]
