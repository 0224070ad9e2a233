"""What an engine costs: a step, and a call's start, with torch against DeepSpeed (one process, stage 1).

A bag head of about 1M parameters on bags of features, and an encoder of about 25M trained on pixels. A call of `train`
with few bags and one with more are interleaved; a step is their difference, a start is what is left of the small one.
`python engines.py [--quick]` prints medians.
"""

import argparse
import os
from collections.abc import Callable
from statistics import median

import torch
from _common import report, take_turns
from torch import nn

from fedpath.core.bags.bag import Bag
from fedpath.core.cohort.examples import Example
from fedpath.core.config.model import ModelSection
from fedpath.core.config.stages import TuningSection
from fedpath.core.encoders.registry import blank_encoder
from fedpath.core.models import BagModel, build_model
from fedpath.core.training import TrainSettings, train
from fedpath.core.training.engines import TORCH, EngineSettings
from fedpath.core.tuning.build import build_tuner
from fedpath.core.tuning.choice import MemoryChoice

_ENGINES = {"torch": TORCH, "deepspeed": EngineSettings("deepspeed", zero_stage=1, processes=1)}
_WIDTH, _PATCHES, _PX, _K = 1024, 2000, 96, 4


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one turn of few steps")
    quick = parser.parse_args().quick
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    figures: dict[str, float] = {}
    ratios: dict[str, float] = {}
    for what, build, examples in (("head", _head, _bags()), ("encoder", _encoder, _slides())):
        model = build()
        figures[f"{what}_parameters_millions"] = sum(p.numel() for p in model.parameters()) / 1e6
        few, many = (1, 3) if quick else (2, 10)
        tasks = {
            f"{engine} {bags}": _task(model, examples, bags, settings)
            for bags in (few, many)
            for engine, settings in _ENGINES.items()
        }
        seconds = {name: median(times) for name, times in take_turns(tasks, 1 if quick else 5).items()}
        for engine in _ENGINES:
            step = (seconds[f"{engine} {many}"] - seconds[f"{engine} {few}"]) / (many - few)
            figures[f"{what}_{engine}_step_ms"] = 1000 * step
            figures[f"{what}_{engine}_start_s"] = seconds[f"{engine} {few}"] - few * step
        ratios[f"{what}_step_deepspeed_vs_torch"] = (
            figures[f"{what}_deepspeed_step_ms"] / figures[f"{what}_torch_step_ms"]
        )
    report("engines", figures, ratios, {}, quick=quick)


def _task(model: BagModel, examples: list[Example], bags: int, engine: EngineSettings) -> Callable[[], object]:
    settings = TrainSettings(1, 1e-5, precision="float32")
    return lambda: train(model, (examples * bags)[:bags], settings, seed=0, engine=engine)


def _head() -> BagModel:
    return build_model("abmil", width=_WIDTH, n_classes=2, options={"inner": 768}, seed=0)


def _bags() -> list[Example]:
    places_N2 = torch.zeros(_PATCHES, 2, dtype=torch.int64)
    return [
        Example(Bag(f"s{index}", torch.randn(_PATCHES, _WIDTH).half(), places_N2, 256), index % 2, f"p{index}", "s")
        for index in range(4)
    ]


def _encoder() -> BagModel:
    """An untrained ResNet-50, all of whose stages are trained: what it has learned does not change what it costs."""
    encoder = blank_encoder("resnet50-layer4").to_empty(device="cpu")
    for value in encoder.state_dict().values():
        if value.is_floating_point():
            nn.init.normal_(value, std=0.02) if value.dim() > 1 else nn.init.ones_(value)
    return build_tuner(
        encoder=encoder,
        encoder_name="resnet50-layer4",
        head=ModelSection(name="abmil"),
        tuning=TuningSection(trainable_stages=len(encoder.stage_names), augment=False),
        n_classes=2,
        seed=0,
        learning_rate=1e-4,
        memory=MemoryChoice(_K, _K, "none"),
    )


def _slides() -> list[Example]:
    pixels_NHWC = torch.randint(0, 256, (_K, _PX, _PX, 3), dtype=torch.uint8)
    places_N2 = torch.zeros(_K, 2, dtype=torch.int64)
    bag = Bag("s", torch.zeros(_K, 0), places_N2, _PX, pixels_NHWC=pixels_NHWC)
    return [Example(bag, index % 2, f"p{index}", "s") for index in range(2)]


if __name__ == "__main__":
    main()
