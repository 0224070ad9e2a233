"""What one micro-batch of patches needs while it passes through the encoder, and how it grows with the patches in it.

Two micro-batches run forward and backward through the tuner's own code on fake tensors, which have shapes and no
numbers: no weights are needed, no GPU, and no memory. After each operation the bytes alive are noted. Every tensor is
either as large as a weight or as the patches of a micro-batch, so at each such moment they are ``a + b · M`` bytes,
exactly; runs of two sizes tell a and b. The peak of any M is the highest of those lines. It is no line itself: small
micro-batches peak where gradients are ready, and large ones where activations are.

Fake tensors are of the CPU, whatever the plan is for: torch without CUDA ends the process where it meets fake ones of a
GPU. Layer by layer, both keep the same tensors for the backward pass.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fedpath.core.bags.bag import Bag
from fedpath.core.config.stages import TuningSection
from fedpath.core.encoders.base import PatchEncoder
from fedpath.core.encoders.registry import blank_encoder, first_trainable_stage, trainable_names
from fedpath.core.models.protocol import BagModel
from fedpath.core.models.randomness import seeded
from fedpath.core.models.registry import build_model
from fedpath.core.training.precision import Chosen, forward
from fedpath.core.tuning.account import MemoryTracker
from fedpath.core.tuning.augment import draw_changes
from fedpath.core.tuning.choice import MemoryChoice, Recompute
from fedpath.core.tuning.model import SparseTuner, micro_batches

_SIZES = (2, 3)
"""Not 1: torch takes other ways with a single patch."""


@dataclass(frozen=True, slots=True)
class Lines:
    """Bytes alive at each moment of a phase, as ``a + b · M``."""

    a_T: Tensor
    b_T: Tensor

    def peak(self, micro_batch: int) -> int:
        """Return the most bytes alive with M patches."""
        return int((self.a_T + self.b_T * micro_batch).max())


@dataclass(frozen=True, slots=True)
class PassMemory:
    """Bytes beyond the weights of a pass with one earlier micro-batch, whose activations may be kept."""

    forward: Lines
    """The second micro-batch's way up."""
    backward: Lines
    """Its way down, on which gradients of the weights appear."""
    backward_again: Lines
    """The first one's way down: the gradients are all there, new ones are added to them."""
    kept: Lines
    """What a micro-batch leaves for its way down, without its features."""
    flops_a_patch: float
    """Of the products of matrices, forward and backward."""


@lru_cache(maxsize=64)
def measure_pass(
    encoder_name: str, tuning: TuningSection, patch_px: int, recompute: Recompute, precision: Chosen
) -> PassMemory:
    """Measure the encoder's pass by its structure alone; a second to three, once a process."""
    runs = [_run(encoder_name, tuning, patch_px, recompute, precision, size) for size in _SIZES]
    (small, flops), (large, _) = runs
    forward_, backward, again, kept = (_lines(one, other) for one, other in zip(small, large, strict=True))
    return PassMemory(forward_, backward, again, kept, flops)


def measure_head(head: BagModel, width: int, patches: int, precision: Chosen, *, accumulate: bool) -> int:
    """Return the peak in bytes of a head's step on K patches: features, their gradient, the head's own gradients.

    It is run for real: heads are small, and some take memory that fake tensors cannot show.

    Args:
        head: on the CPU; its gradients are forgotten.
        width: D.
        patches: K.
        precision: of the products.
        accumulate: the head's gradients are there from an earlier bag: they are added to and do not count.
    """
    edge = int(patches**0.5) + 1
    places_N = torch.arange(patches)
    coords_N2 = 256 * torch.stack([places_N % edge, places_N // edge], dim=1)

    def step() -> int:
        tracker = MemoryTracker()
        tracker.add(head)
        there = tracker.live
        with seeded(0), tracker:
            bag = Bag("plan", torch.zeros(patches, width, requires_grad=True), coords_N2, 256)
            output = forward(head, bag, device=torch.device("cpu"), precision=precision)
            head.loss(output, 0).backward()  # type: ignore[no-untyped-call]
        return tracker.peak - there

    head.train().zero_grad(set_to_none=True)
    peaks = [step() for _ in range(2 if accumulate else 1)]
    head.zero_grad(set_to_none=True)
    return peaks[-1]


def _run(
    encoder_name: str, tuning: TuningSection, patch_px: int, recompute: Recompute, precision: Chosen, size: int
) -> tuple[list[list[int]], float]:
    """Return the courses of `PassMemory`'s phases with ``size`` patches a micro-batch, and the products a patch."""
    blank = blank_encoder(encoder_name, tuning)
    memory = MemoryChoice(2 * size, size, recompute)
    with FakeTensorMode():
        encoder = _materialised(blank)
        tuner = SparseTuner(
            encoder,
            build_model("mean-pool", width=1, n_classes=2, seed=0),
            trainable=trainable_names(encoder, encoder_name, tuning),
            first_stage=first_trainable_stage(encoder, encoder_name, tuning),
            encoder_rate_scale=1.0,
            augment=tuning.augment,
            memory=memory,
        )
        pixels_NHWC = torch.empty(2 * size, patch_px, patch_px, 3, dtype=torch.uint8)
        changes = draw_changes(2 * size) if tuning.augment else None
        with _Products() as products, MemoryTracker() as tracker:
            # The places in the course where phases begin, and what was alive there.
            marks: list[tuple[int, int]] = []

            def mark(_: Tensor | None = None) -> None:
                marks.append((len(tracker.course), tracker.live))

            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                pieces = []
                for rows in micro_batches(2 * size, memory):
                    mark()
                    pieces.append(tuner.encode(pixels_NHWC[rows], rows, changes))
            mark()
            pieces[0].register_hook(mark)  # type: ignore[no-untyped-call]
            torch.autograd.backward(pieces, [torch.ones_like(piece) for piece in pieces])
            mark()
    (_, start), (_, first), *_ = marks
    places = [place for place, _ in marks[1:]]
    courses = [tracker.course[begin:end] for begin, end in pairwise(places)]
    features = pieces[0].numel() * pieces[0].element_size()
    return [*courses, [first - start - features]], products.flops / (2 * size)


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations of products of matrices. torch's own counter has hooks that keep tensors alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count it."""
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        self.flops += 0 if count is None else count(*args, **(kwargs or {}), out_val=result)
        return result


def _materialised(blank: PatchEncoder) -> PatchEncoder:
    """Return a blank encoder with tensors of the CPU, which inside a fake mode are fake, in place of meta ones."""
    for module in blank.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.empty(parameter.shape), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return blank


def _lines(small: list[int], large: list[int]) -> Lines:
    """Return the lines through two courses of the same operations."""
    if len(small) != len(large):
        raise AssertionError("two sizes of micro-batches took different operations")
    (one, other), (small_T, large_T) = _SIZES, (torch.tensor(small), torch.tensor(large))
    slope_T = (large_T - small_T) / (other - one)
    return Lines(small_T - one * slope_T, slope_T)
