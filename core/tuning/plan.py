"""The memory plan: how a hospital's GPU of some size takes part in fine-tuning.

First come the patches: as many of a slide as the federation allows and the memory can hold. Then the cheapest way in
compute that fits: activations kept before trained stages computed twice before all computed twice; large micro-batches
before small ones, and those below 8 patches, which leave a GPU idle, last; the optimizer's states in the computer's
memory only if nothing else does. Precision is what the device does fast, as long as it fits.

Nothing is run but the small head: the rest is measured on structure alone (`measure`) and put together (`predict`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Literal

import torch

from fedpath.core.config.model import ModelSection
from fedpath.core.config.stages import TuningSection
from fedpath.core.encoders.registry import info_of
from fedpath.core.errors import ConfigError
from fedpath.core.training.precision import Chosen
from fedpath.core.tuning.choice import RECOMPUTE, MemoryChoice
from fedpath.core.tuning.predict import CONTEXT, Parts, Predictor

GB = 10**9
SPARE = 0.05
"""Share of the budget that no plan uses: an allocator's blocks do not fit one another without gaps."""
_MICRO_BATCHES = (64, 32, 16, 8, 4, 2, 1)
"""Above 64 patches of 224 px a GPU gains nothing: it is busy."""
_BUSY = 8


@dataclass(frozen=True, slots=True)
class Lever:
    """One means of saving memory."""

    name: str
    used: bool
    off: int
    """Predicted peak in bytes of the choice without it."""
    on: int
    """With it."""
    cost: str
    """What it costs, in words."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A choice, and what it will need."""

    choice: MemoryChoice
    budget_bytes: int
    parts: Parts
    compute: float
    """Operations of a step relative to one that computes nothing twice."""
    levers: tuple[Lever, ...]
    cuda: bool
    _predictor: Predictor = field(repr=False, compare=False)

    @property
    def peak_bytes(self) -> int:
        """The predicted peak, everything included."""
        return self.parts.total

    @property
    def allocated_bytes(self) -> int:
        """The predicted peak of torch's allocator, which does not see a GPU's context."""
        return self.peak_bytes - (CONTEXT if self.cuda else 0)

    def tighter(self) -> "Plan | None":
        """Return the plan with micro-batches of half the size and the next leaner way; None if this is the leanest."""
        index = min(RECOMPUTE.index(self.choice.recompute) + 1, len(RECOMPUTE) - 1)
        # Halved from the size that pieces really have: a limit of 64 on 8 patches is one of 8.
        size = min(self.choice.micro_batch, self.choice.patches)
        choice = replace(self.choice, micro_batch=max(1, size // 2), recompute=RECOMPUTE[index])
        if (choice.recompute, choice.micro_batch) == (self.choice.recompute, size):
            return None
        return _plan(self._predictor, choice, self.budget_bytes, self.choice.patches, self.cuda)


def plan_memory(
    encoder_name: str,
    head: ModelSection,
    tuning: TuningSection,
    *,
    n_classes: int,
    patch_px: int,
    budget_bytes: int,
    device: torch.device | str,
    precision: Chosen,
    engine: Literal["torch", "deepspeed"] = "torch",
    accumulate_bags: int = 1,
    drift_copies: int = 0,
) -> Plan:
    """Return the plan for a budget; see the module's docstring for the order of preference.

    Args:
        encoder_name: of the registry; no weights are needed.
        head: the bag model on top.
        tuning: what is trained, and the bounds of K.
        n_classes: C.
        patch_px: edge of a patch.
        budget_bytes: what the process may take of the device's memory.
        device: the kind decides; a GPU need not be here.
        precision: the one that is allowed and fast there (`choose_precision`).
        engine: what steps the weights; DeepSpeed alone can offload.
        accumulate_bags: bags a step learns from.
        drift_copies: copies of what trains that FedProx and SCAFFOLD hold.

    Raises:
        ConfigError: encoder or head cannot be built so, the encoder takes no such patches, or no plan fits: it says the
            smallest budget that would do.
    """
    _check_patches(encoder_name, patch_px)
    cuda = torch.device(device).type == "cuda"
    predictor = Predictor(
        encoder_name,
        head,
        tuning,
        n_classes=n_classes,
        patch_px=patch_px,
        cuda=cuda,
        deepspeed=engine == "deepspeed",
        accumulate_bags=accumulate_bags,
        drift_copies=drift_copies,
    )

    def first_fit(patches: int) -> MemoryChoice | None:
        return next(
            (choice for choice in _choices(patches, precision, engine) if fits(predictor.parts(choice).total)), None
        )

    def fits(peak: int) -> bool:
        return peak <= budget_bytes * (1 - SPARE)

    most, least = tuning.patches.most, tuning.patches.least
    found = first_fit(most)
    if found is None:
        found = first_fit(least)
        if found is None:
            smallest = min(predictor.parts(choice).total for choice in _choices(least, precision, engine))
            raise _impossible(encoder_name, patch_px, budget_bytes, smallest, least)
        low, high = least, most  # low fits, high does not
        while high - low > 1:
            middle = (low + high) // 2
            fit = first_fit(middle)
            low, high, found = (middle, high, fit) if fit else (low, middle, found)
    return _plan(predictor, found, budget_bytes, most, cuda)


def _choices(patches: int, precision: Chosen, engine: str) -> Iterator[MemoryChoice]:
    """Yield every way for K patches, the cheapest first."""
    sizes = [size for size in _MICRO_BATCHES if size < patches]
    if patches <= _MICRO_BATCHES[0]:
        sizes.insert(0, patches)
    busy = [size for size in sizes if size >= _BUSY]
    # bfloat16 needs copies of weights beside them: where weights are most of what there is, float32 is the leaner one.
    precisions: tuple[Chosen, ...] = ("bfloat16", "float32") if precision == "bfloat16" else ("float32",)
    offloads = (False, True) if engine == "deepspeed" else (False,)
    ways = product(offloads, precisions, (busy, sizes[len(busy) :]), RECOMPUTE)
    for offload, taken, group, recompute in ways:
        for size in group:
            yield MemoryChoice(patches, size, recompute, taken, offload)


def _plan(predictor: Predictor, choice: MemoryChoice, budget_bytes: int, most: int, cuda: bool) -> Plan:
    return Plan(
        choice,
        budget_bytes,
        predictor.parts(choice),
        predictor.compute(choice),
        tuple(_levers(predictor, choice, most)),
        cuda,
        predictor,
    )


def _levers(predictor: Predictor, choice: MemoryChoice, most: int) -> Iterator[Lever]:
    """Yield each means, with the peaks of the choice with and without it alone."""
    here, size, patches = predictor.parts(choice).total, choice.micro_batch, choice.patches

    def lever(name: str, without: MemoryChoice, leaner: MemoryChoice, cost: str) -> Lever:
        # One that is not used, or one that makes nothing smaller, is shown by what it would save.
        off = predictor.parts(without).total
        if without != choice and off > here:
            return Lever(name, True, off, here, cost)
        return Lever(name, False, here, predictor.parts(leaner).total, "not needed")

    if patches < most:
        yield lever(
            f"{patches} patches, not {most}", replace(choice, patches=most), choice, "fewer patches to learn from"
        )
    all_at_once = replace(choice, micro_batch=patches)
    halved = replace(choice, micro_batch=max(1, min(size, patches) // 2))
    cost = "little" if size >= _BUSY else "time: so few do not fill a GPU"
    yield lever(f"micro-batches of {min(size, patches)}", all_at_once, halved, cost)
    names = {
        "none": "compute trained stages twice",
        "upper": "compute trained stages twice",
        "whole": "compute all twice",
    }
    cost = f"{predictor.compute(choice):.2f} × the operations"
    kept, upper = replace(choice, recompute="none"), replace(choice, recompute="upper")
    yield lever(names[choice.recompute], kept, upper, cost)
    wide, narrow = replace(choice, precision="float32"), replace(choice, precision="bfloat16")
    yield lever("bfloat16", wide, narrow, "none: it is faster here")
    inside, outside = replace(choice, offload=False), replace(choice, offload=True)
    yield lever("optimizer in main memory (DeepSpeed)", inside, outside, "copies at each step")


def _check_patches(encoder_name: str, patch_px: int) -> None:
    wanted = info_of(encoder_name).patch_px
    if wanted is not None and patch_px != wanted:
        raise ConfigError(
            f"encoder '{encoder_name}' takes patches of {wanted} px, not {patch_px}",
            remedy=f"set features.patch_px = {wanted} in federation.toml, or take an encoder for any size "
            "(resnet50-layer4)",
        )
    if patch_px < 16:
        raise ConfigError(f"patches of {patch_px} px are too small to encode", remedy="take at least 16 px")


def _impossible(encoder_name: str, patch_px: int, budget: int, smallest: int, least: int) -> ConfigError:
    # Up to two or three digits, and upwards: what is said must do.
    needed = smallest / (1 - SPARE) / GB
    step = 10.0 ** (math.floor(math.log10(needed)) - 1)
    rounded = math.ceil(needed / step) * step
    return ConfigError(
        f"no plan fits {budget / GB:g} GB: fine-tuning '{encoder_name}' on {least} patches of {patch_px} px a slide "
        f"needs {rounded:.3g} GB at least",
        remedy=f"give compute.vram_gb = {rounded:.3g} or more in site.toml if the GPU has it; the federation can lower "
        "stage.tuning.patches.least or stage.tuning.trainable_stages",
    )
