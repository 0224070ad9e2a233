"""What a training step of the encoder costs: gradients through all patches of a slide, or through the selected ones.

`resnet50-layer4` at 224 px with CLAM on top, by the tuner's own code. Three ways of a step:

    full      all N patches, every stage trained, everything kept: end-to-end training as it would be written down
    frozen    all N patches, the lower stages frozen as in sparse training: what freezing alone saves
    sparse    K patches, lower stages frozen, and computed twice what the memory plan for 8 GB computes twice

No step with N patches is run: it would keep most of a terabyte. Operations and seconds are measured on a few, and
scaled (that operations are proportional to patches is checked). Memory is what the plan's accounting predicts, and that
is held against the peaks of real training steps. Pixels and weights are random: no count depends on them.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from _common import take_turns
from torch.utils.flop_counter import FlopCounterMode

from fedpath.core.bags import Bag
from fedpath.core.cohort.examples import Example
from fedpath.core.config.model import ModelSection
from fedpath.core.config.stages import Patches, TuningSection
from fedpath.core.encoders import PatchEncoder
from fedpath.core.encoders.drawn import drawn_state
from fedpath.core.encoders.registry import blank_encoder
from fedpath.core.models import build_model
from fedpath.core.training import TrainSettings, train
from fedpath.core.tuning.account import MemoryTracker
from fedpath.core.tuning.build import build_tuner
from fedpath.core.tuning.choice import RECOMPUTE, MemoryChoice, Recompute
from fedpath.core.tuning.model import SparseTuner
from fedpath.core.tuning.plan import GB, plan_memory
from fedpath.core.tuning.predict import Predictor

ENCODER, PATCH_PX, HEAD = "resnet50-layer4", 224, ModelSection(name="clam-sb")
N, K = 10_000, 512
"""Patches of a Camelyon16 slide at 20x, as VIB's authors count them, and their largest selection but one."""
BUDGET_GB = 8
EPOCHS, SELECT_EPOCHS = 30, 50
"""The authors' recipe of fine-tuning and of the selector."""
FROZEN = TuningSection(patches=Patches(most=K, least=64), augment=False)
ALL = FROZEN.model_copy(update={"trainable_stages": 5})


@dataclass(frozen=True, slots=True)
class Way:
    """One way of a training step."""

    patches: int
    """Of the slide."""
    tuning: TuningSection
    recompute: Recompute


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one patch in a step."""

    operations: float
    seconds: float


def ways() -> dict[str, Way]:
    """Return the ways by name; the sparse one as the plan for the budget has it."""
    plan = plan_memory(
        ENCODER,
        HEAD,
        FROZEN,
        n_classes=2,
        patch_px=PATCH_PX,
        budget_bytes=BUDGET_GB * GB,
        device="cuda",
        precision="float32",
    )
    return {
        "full": Way(N, ALL, "none"),
        "frozen": Way(N, FROZEN, "none"),
        "sparse": Way(K, FROZEN, plan.choice.recompute),
    }


def measure(*, quick: bool) -> dict[str, float]:
    """Return all figures of this part."""
    small, large, turns = (1, 2, 1) if quick else (2, 4, 3)
    chosen = ways()
    seconds = {
        name: median(times) / large
        for name, times in take_turns(
            {name: partial(_step, _tuner(way, large), large) for name, way in chosen.items()}, turns
        ).items()
    }
    costs = {}
    for name, way in chosen.items():
        per_patch, operations_apart = _slope({m: _operations(_tuner(way, m), m) for m in (small, large)})
        if abs(operations_apart) > 0.01 * per_patch:
            raise SystemExit(f"{name}: operations are not proportional to the patches")
        costs[name] = Cost(per_patch, seconds[name])
    once, selecting = encode_operations(small), selector_operations(256)
    return {
        **compared(chosen, costs),
        **{f"{name}_gb": predicted_gb(way) for name, way in chosen.items()},
        **pipeline(costs["full"], costs["sparse"], once, selecting),
        **predicted_against_measured(quick=quick),
    }


def compared(chosen: Mapping[str, Way], costs: Mapping[str, Cost]) -> dict[str, float]:
    """Return the figures of one step on a slide with N patches."""
    steps = {name: (way.patches, costs[name]) for name, way in chosen.items()}
    tera = {f"{name}_tflop_a_step": patches * cost.operations / 1e12 for name, (patches, cost) in steps.items()}
    seconds = {f"{name}_s_a_step": patches * cost.seconds for name, (patches, cost) in steps.items()}
    return {
        **tera,
        **seconds,
        "compute_full_vs_sparse": tera["full_tflop_a_step"] / tera["sparse_tflop_a_step"],
        "compute_full_vs_frozen": tera["full_tflop_a_step"] / tera["frozen_tflop_a_step"],
        "compute_frozen_vs_sparse": tera["frozen_tflop_a_step"] / tera["sparse_tflop_a_step"],
        "seconds_full_vs_sparse": seconds["full_s_a_step"] / seconds["sparse_s_a_step"],
    }


def predicted_gb(way: Way) -> float:
    """Return the peak of a step with AdamW: all in one piece, or by 64 patches where things are computed twice."""
    predictor = Predictor(ENCODER, HEAD, way.tuning, n_classes=2, patch_px=PATCH_PX, cuda=False)
    size = way.patches if way.recompute == "none" else 64
    return predictor.parts(MemoryChoice(way.patches, size, way.recompute)).total / GB


def pipeline(full: Cost, sparse: Cost, once: float, selecting: float) -> dict[str, float]:
    """Return what a slide costs from its pixels to new features: encoding, selection, fine-tuning, encoding again.

    Args:
        full: of end-to-end training, which needs none of the other stages.
        sparse: of the fine-tuning stage.
        once: operations of encoding one patch.
        selecting: operations of training the selector on one patch, one epoch.
    """
    parts = {
        "encode": 2 * N * once,
        "select": SELECT_EPOCHS * N * selecting,
        "fine_tune": EPOCHS * K * sparse.operations,
    }
    figures = {f"pipeline_{name}_tflop": value / 1e12 for name, value in parts.items()}
    whole = EPOCHS * N * full.operations
    return figures | {"pipeline_full_tflop": whole / 1e12, "compute_full_vs_pipeline": whole / sum(parts.values())}


def predicted_against_measured(*, quick: bool) -> dict[str, float]:
    """Return predicted over measured peaks of real training steps, a way of computing twice each, and the worst."""
    # Enough of them that the peak lies in the encoder's pass, not where the optimizer steps: sums tell that one.
    px, patches, size = (128, 64, 32) if quick else (PATCH_PX, 32, 16)
    predictor = Predictor(ENCODER, HEAD, FROZEN, n_classes=2, patch_px=px, cuda=False)
    figures, predicted, measured = {}, {}, {}
    for recompute in RECOMPUTE:
        way, choice = Way(patches, FROZEN, recompute), MemoryChoice(patches, size, recompute)
        predicted[recompute] = predictor.parts(choice).total
        measured[recompute] = _peak(_tuner(way, size, patches), patches, px)
        figures[f"measured_gb_{recompute}"] = measured[recompute] / GB
        figures[f"predicted_vs_measured_{recompute}"] = predicted[recompute] / measured[recompute]
    ratios = [predicted[recompute] / measured[recompute] for recompute in RECOMPUTE]
    return figures | {"predicted_vs_measured_peak": max(ratios, key=lambda ratio: abs(ratio - 1))}


def step_table(figures: Mapping[str, float]) -> list[list[str]]:
    """Return the page's table of one step on one slide."""
    words = {
        "full": f"all {N:,} patches, all stages",
        "frozen": f"all {N:,} patches, lower stages frozen",
        "sparse": f"{K} selected patches, lower stages frozen",
    }
    rows = [["gradients through", "Tflop", "relative", "CPU seconds", "peak, GB"]]
    for name, what in words.items():
        tera = figures[f"{name}_tflop_a_step"]
        relative = figures["full_tflop_a_step"] / tera
        seconds, peak = figures[f"{name}_s_a_step"], figures[f"{name}_gb"]
        rows.append([what, f"{tera:.1f}", f"1/{relative:.1f}", f"{seconds:,.0f}", f"{peak:.1f}"])
    return rows


def pipeline_table(figures: Mapping[str, float]) -> list[list[str]]:
    """Return the page's table of a slide's whole way."""
    words = {
        "encode": "encode all patches, before and after",
        "select": f"train the selector, {SELECT_EPOCHS} epochs",
        "fine_tune": f"fine-tune on {K} patches, {EPOCHS} epochs",
    }
    parts = [[what, f"{figures[f'pipeline_{name}_tflop']:,.0f}"] for name, what in words.items()]
    together = figures["pipeline_full_tflop"] / figures["compute_full_vs_pipeline"]
    whole = [f"end-to-end training on all patches, {EPOCHS} epochs", f"{figures['pipeline_full_tflop']:,.0f}"]
    return [["a slide's", "Tflop"], *parts, ["together", f"{together:,.0f}"], whole]


def encode_operations(patches: int) -> float:
    """Return the operations of one patch's way through the encoder."""
    encoder = drawn_encoder()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        encoder(torch.zeros(patches, 3, PATCH_PX, PATCH_PX))
    return counter.get_total_flops() / patches


def selector_operations(patches: int) -> float:
    """Return the operations of one patch's way through the selector, forward and backward."""
    model = build_model("vib", width=blank_encoder(ENCODER).width, n_classes=2, seed=0).train()
    bag = Bag("slide", torch.zeros(patches, blank_encoder(ENCODER).width), torch.zeros(patches, 2).long(), PATCH_PX)
    with FlopCounterMode(display=False) as counter:
        model.loss(model(bag), 1).backward()
    return counter.get_total_flops() / patches


def drawn_encoder() -> PatchEncoder:
    """Return the encoder with weights drawn from a seed: its own would change no count."""
    encoder = blank_encoder(ENCODER)
    encoder.load_state_dict(drawn_state(encoder.state_dict(), seed=0), assign=True)
    return encoder.eval()


def _tuner(way: Way, micro_batch: int, patches: int | None = None) -> SparseTuner:
    return build_tuner(
        encoder=drawn_encoder(),
        encoder_name=ENCODER,
        head=HEAD,
        tuning=way.tuning,
        n_classes=2,
        seed=0,
        learning_rate=1e-4,
        memory=MemoryChoice(patches or micro_batch, micro_batch, way.recompute),
    ).train()


def _bag(patches: int, px: int = PATCH_PX) -> Bag:
    generator = torch.Generator().manual_seed(0)
    pixels_NHWC = torch.randint(0, 256, (patches, px, px, 3), dtype=torch.uint8, generator=generator)
    coords_N2 = torch.zeros(patches, 2, dtype=torch.int64)
    return Bag("slide", torch.zeros(patches, 0), coords_N2, px, pixels_NHWC=pixels_NHWC)


def _step(tuner: SparseTuner, patches: int) -> None:
    tuner.zero_grad(set_to_none=True)
    tuner.loss(tuner(_bag(patches)), 1).backward()


def _operations(tuner: SparseTuner, patches: int) -> float:
    with FlopCounterMode(display=False) as counter:
        _step(tuner, patches)
    return float(counter.get_total_flops())


def _peak(tuner: SparseTuner, patches: int, px: int = PATCH_PX) -> int:
    """Return the bytes alive at most in two steps with the optimizer, all weights included."""
    print(f"two steps on {patches} patches, computed twice: {tuner.memory.recompute}", file=sys.stderr, flush=True)
    examples = [Example(_bag(patches, px), target, f"p{target}", f"s{target}") for target in (0, 1)]
    tracker = MemoryTracker()
    tracker.add(tuner)
    with tracker:
        train(tuner, examples, TrainSettings(precision="float32"), seed=0)
    return tracker.peak


def _slope(values: Mapping[int, float]) -> tuple[float, float]:
    """Return b and a of the line a + b · m through two points."""
    (small, low), (large, high) = values.items()
    slope = (high - low) / (large - small)
    return slope, low - small * slope
