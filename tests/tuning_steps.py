"""Real training steps on small slides, for what is measured in them."""

import torch

from fedpath.core.bags import Bag
from fedpath.core.cohort import Example
from fedpath.core.config.model import ModelSection
from fedpath.core.config.stages import TuningSection
from fedpath.core.encoders.registry import build_encoder
from fedpath.core.training import TrainSettings, train
from fedpath.core.training.drift import DriftTerms
from fedpath.core.tuning.account import MemoryTracker
from fedpath.core.tuning.build import build_tuner
from fedpath.core.tuning.choice import MemoryChoice
from fedpath.core.tuning.model import SparseTuner

HEAD = ModelSection(name="clam-sb")


def make_tuner(name: str, tuning: TuningSection, choice: MemoryChoice, head: ModelSection = HEAD) -> SparseTuner:
    return build_tuner(
        encoder=build_encoder(name),
        encoder_name=name,
        head=head,
        tuning=tuning,
        n_classes=2,
        seed=0,
        learning_rate=1e-3,
        memory=choice,
    )


def make_examples(n: int, patches: int, px: int) -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    examples = []
    for index in range(n):
        pixels_NHWC = torch.randint(0, 256, (patches, px, px, 3), dtype=torch.uint8, generator=generator)
        coords_N2 = torch.zeros(patches, 2, dtype=torch.int64)
        bag = Bag(f"s{index}", torch.zeros(patches, 0), coords_N2, px, pixels_NHWC=pixels_NHWC)
        examples.append(Example(bag, index % 2, f"p{index}", f"s{index}"))
    return examples


def train_tracked(
    tuner: SparseTuner,
    px: int,
    limit: int | None = None,
    accumulate_bags: int = 1,
    drift: DriftTerms | None = None,
) -> int:
    """Take two steps, so that the optimizer has its states in the second; return the peak in bytes."""
    examples = make_examples(2 * accumulate_bags, tuner.memory.patches, px)
    tracker = MemoryTracker(limit)
    tracker.add(tuner)
    settings = TrainSettings(precision=tuner.memory.precision, accumulate_bags=accumulate_bags)
    with tracker:
        train(tuner, examples, settings, seed=0, drift=drift)
    return tracker.peak
