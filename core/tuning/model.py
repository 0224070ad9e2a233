"""Encoder and bag head as one model of pixels, trained end to end on a slide's K selected patches.

The gradient flows through K patches of a slide only (sparse back-propagation), and those pass through the encoder in
micro-batches. What is kept for the backward pass is a matter of memory (`MemoryChoice`), never of the result: features,
loss and gradients are those of one batch of all K patches through the encoder, to rounding.

    pixels (CPU) → device → augment → prepare → frozen stages │ trained stages → features_KD → head → loss
                   └────────── without gradients ─────────────┘

Only what trains travels: the frozen part is in everybody's file of weights.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fedpath.core.bags.bag import Bag
from fedpath.core.encoders.base import Hidden, PatchEncoder
from fedpath.core.models.protocol import BagModel, BagOutput
from fedpath.core.tuning.augment import Changes, augment, draw_changes
from fedpath.core.tuning.choice import MemoryChoice


class SparseTuner(BagModel):
    """See the module's docstring.

    Args:
        encoder: its parameters' ``requires_grad`` are set here.
        head: a bag model on features of the encoder's width, without clinical data.
        trainable: names of the encoder's parameters that are trained, at least one.
        first_stage: the first stage with one of them; those below run without gradients.
        encoder_rate_scale: the encoder's learning rate relative to the head's.
        augment: change the patches at random in training.
        memory: how the patches pass through the encoder; may be set anew between two steps.
    """

    resident_groups: ClassVar[frozenset[str]] = frozenset({"frozen"})

    def __init__(
        self,
        encoder: PatchEncoder,
        head: BagModel,
        *,
        trainable: Collection[str],
        first_stage: int,
        encoder_rate_scale: float,
        augment: bool,
        memory: MemoryChoice,
    ) -> None:
        super().__init__()
        unknown = set(trainable) - {name for name, _ in encoder.named_parameters()}
        if unknown or not trainable:
            raise ValueError(f"no parameters of the encoder to train: {', '.join(sorted(unknown)) or 'none named'}")
        self.encoder, self.head = encoder, head
        self.slide_width = head.slide_width
        self.first_stage = first_stage
        self.augment = augment
        self.memory = memory
        self._encoder_rate_scale = encoder_rate_scale
        self._trainable = frozenset(trainable)
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(name in trainable)

    def forward(self, bag: Bag) -> BagOutput:
        """Classify a slide by the pixels of its patches, which stay on the CPU but for a micro-batch at a time."""
        if bag.pixels_NHWC is None:
            raise ValueError(f"slide '{bag.slide_id}' comes without the pixels of its patches")
        return self.head(replace(bag, features_ND=self.features(bag.pixels_NHWC), pixels_NHWC=None))

    def features(self, pixels_NHWC: Tensor) -> Tensor:
        """Return features (N, D), at least float32, of N ≥ 1 patches; in training of randomly changed ones."""
        changes = draw_changes(len(pixels_NHWC)) if self.training and self.augment else None
        features_ND = torch.cat(
            [self.encode(pixels_NHWC[rows], rows, changes) for rows in micro_batches(len(pixels_NHWC), self.memory)]
        )
        return features_ND.to(torch.promote_types(features_ND.dtype, torch.float32))

    def encode(self, pixels_MHWC: Tensor, rows: slice, changes: Changes | None) -> Tensor:
        """Return features (M, D) of one micro-batch, the patches ``rows`` of a slide."""

        def lower() -> Hidden:
            # Without autocast's cache of weights: torch would sum the micro-batches' gradients of such a copy in
            # bfloat16, where small ones are lost. Without it they meet in float32, at the weight itself.
            with torch.no_grad(), _autocast_without_cache(device):
                hidden = (self.encoder.prepare(_colours(pixels_MHWC, rows, changes, device).to(dtype)),)
                return self.encoder.run_stages(hidden, 0, self.first_stage)

        def upper(*hidden: Tensor) -> Tensor:
            with _autocast_without_cache(device):
                (features_MD,) = self.encoder.run_stages(hidden, self.first_stage, len(self.encoder.stage_names))
            return features_MD

        a_weight = next(self.encoder.parameters())
        device, dtype = a_weight.device, a_weight.dtype
        recompute = self.memory.recompute if torch.is_grad_enabled() else "none"
        # Nothing random happens in there, so no generator's state is kept for the second time.
        twice = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        features_MD: Tensor
        if recompute == "whole":
            features_MD = twice(lambda: upper(*lower()))
        elif recompute == "upper":
            features_MD = twice(upper, *lower())
        else:
            features_MD = upper(*lower())
        return features_MD

    def loss(self, output: BagOutput, target: int, class_weights_C: Tensor | None = None) -> Tensor:
        """Return the head's loss."""
        return self.head.loss(output, target, class_weights_C)

    def parameter_groups(self) -> dict[str, list[str]]:
        """Return ``frozen``, ``encoder``, and the head's: ``head``, or ``head-<group>`` if it has several."""
        names = list(self.encoder.state_dict())
        of_head = self.head.parameter_groups()
        return {
            "frozen": [f"encoder.{name}" for name in names if name not in self._trainable],
            "encoder": [f"encoder.{name}" for name in names if name in self._trainable],
        } | {
            "head" if len(of_head) == 1 else f"head-{group}": [f"head.{name}" for name in members]
            for group, members in of_head.items()
        }

    @property
    def learning_rate_scales(self) -> Mapping[str, float]:
        """The encoder's, which knows much already, is lower than the fresh head's."""
        return {"encoder": self._encoder_rate_scale}


def micro_batches(n_patches: int, memory: MemoryChoice) -> Iterator[slice]:
    """Yield ``n_patches`` in as few pieces as ``memory.micro_batch`` allows; their sizes differ by 1 at most."""
    pieces = -(-n_patches // memory.micro_batch)
    for piece in range(pieces):
        yield slice(piece * n_patches // pieces, (piece + 1) * n_patches // pieces)


def _colours(pixels_MHWC: Tensor, rows: slice, changes: Changes | None, device: torch.device) -> Tensor:
    """Return colours (M, C, H, W) in 0…1, float32, on ``device``: changed, if they are to be."""
    rgb_MCHW = pixels_MHWC.to(device).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    rgb_MCHW = rgb_MCHW.div_(255)
    return rgb_MCHW if changes is None else augment(rgb_MCHW, changes.of(rows, device))


def _autocast_without_cache(device: torch.device) -> torch.autocast:
    """Return autocast as it is set at the moment, without its cache."""
    return torch.autocast(
        device.type,
        torch.get_autocast_dtype(device.type),
        enabled=torch.is_autocast_enabled(device.type),
        cache_enabled=False,
    )
