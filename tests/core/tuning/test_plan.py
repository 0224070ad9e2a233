"""Plans: what they predict is what a real step takes, and what they choose is the cheapest that fits."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import pytest
import torch
from tuning_steps import HEAD, make_tuner, train_tracked

from fedpath.core.config.federated import LocalSection
from fedpath.core.config.model import ModelSection
from fedpath.core.config.stages import Patches, TuningSection
from fedpath.core.errors import ConfigError
from fedpath.core.training.drift import DriftTerms, copies_of
from fedpath.core.training.engines.base import trained_parameters
from fedpath.core.tuning.choice import RECOMPUTE, MemoryChoice
from fedpath.core.tuning.measure import measure_pass
from fedpath.core.tuning.model import SparseTuner
from fedpath.core.tuning.plan import GB, SPARE, Plan, plan_memory
from fedpath.core.tuning.predict import CONTEXT, Predictor

LORA = TuningSection(adapter="lora", rank=4)


def make_plan(
    budget_gb: float,
    encoder: str = "resnet50-layer4",
    tuning: TuningSection | None = None,
    *,
    device: str = "cuda",
    precision: Literal["float32", "bfloat16"] = "float32",
    engine: Literal["torch", "deepspeed"] = "torch",
    patch_px: int = 224,
    head: str = "clam-sb",
) -> Plan:
    return plan_memory(
        encoder,
        ModelSection(name=head),
        tuning or TuningSection(),
        n_classes=2,
        patch_px=patch_px,
        budget_bytes=int(budget_gb * GB),
        device=device,
        precision=precision,
        engine=engine,
    )


@pytest.mark.parametrize("accumulate_bags", [1, 2])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("encoder", "tuning", "px", "patches", "sizes"),
    [("tiny-resnet", TuningSection(), 96, 12, (1, 5, 12)), ("tiny-vit", LORA, 128, 6, (2, 6))],
    ids=["resnet", "vit-lora"],
)
def test_predicts_the_peak_of_a_real_step(
    encoder: str,
    tuning: TuningSection,
    px: int,
    patches: int,
    sizes: Sequence[int],
    precision: Literal["float32", "bfloat16"],
    accumulate_bags: int,
) -> None:
    predictor = Predictor(encoder, HEAD, tuning, n_classes=2, patch_px=px, cuda=False, accumulate_bags=accumulate_bags)
    for recompute in RECOMPUTE:
        for size in sizes:
            choice = MemoryChoice(patches, size, recompute, precision)
            measured = train_tracked(make_tuner(encoder, tuning, choice), px, accumulate_bags=accumulate_bags)
            assert 0.97 < predictor.parts(choice).total / measured < 1.05, (choice, measured)


@pytest.mark.parametrize("method", ["fedprox", "scaffold"])
def test_predicts_it_with_what_a_method_against_drift_holds(method: Literal["fedprox", "scaffold"]) -> None:
    choice = MemoryChoice(12, 4, "upper")
    tuner = make_tuner("tiny-resnet", TuningSection(), choice)
    if method == "scaffold":
        # As on a GPU, where the terms are copied to: each in memory that the tracker has not seen.
        tracked = train_tracked(tuner, 96, drift=DriftTerms(correction=_Made(tuner)))
    else:
        tracked = train_tracked(tuner, 96, drift=DriftTerms(proximal=0.1))
    local = LocalSection(method=method)
    predictor = Predictor(
        "tiny-resnet", HEAD, TuningSection(), n_classes=2, patch_px=96, cuda=False, drift_copies=copies_of(local)
    )
    assert 0.95 < predictor.parts(choice).total / tracked < 1.05
    plain = Predictor("tiny-resnet", HEAD, TuningSection(), n_classes=2, patch_px=96, cuda=False).parts(choice).total
    trained = sum(p.numel() * 4 for _, p in trained_parameters(tuner).values())
    assert predictor.parts(choice).total - plain == copies_of(local) * trained


class _Made(dict[str, torch.Tensor]):
    """Corrections that are made when they are asked for."""

    def __init__(self, tuner: SparseTuner) -> None:
        super().__init__({name: parameter.new_empty(0) for name, (_, parameter) in trained_parameters(tuner).items()})
        self._tuner = tuner

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.zeros_like(trained_parameters(self._tuner)[name][1])


@pytest.mark.parametrize("head", ["transmil", "longmil", "dsmil", "mean-pool"])
def test_predicts_it_for_heads_of_all_kinds(head: str) -> None:
    choice, section = MemoryChoice(24, 8, "upper"), ModelSection(name=head)
    predictor = Predictor("tiny-resnet", section, TuningSection(), n_classes=2, patch_px=32, cuda=False)
    measured = train_tracked(make_tuner("tiny-resnet", TuningSection(), choice, section), 32)
    assert 0.95 < predictor.parts(choice).total / measured < 1.1


def test_memory_really_falls_with_each_lever() -> None:
    def measured(size: int, recompute: Literal["none", "upper", "whole"]) -> int:
        choice = MemoryChoice(48, size, recompute)
        return train_tracked(make_tuner("tiny-resnet", TuningSection(augment=False), choice), 64)

    kept, border, pixels = (measured(4, recompute) for recompute in RECOMPUTE)
    assert kept > 1.3 * border
    assert border > 1.1 * pixels
    assert measured(48, "whole") > 3 * pixels


@pytest.mark.parametrize("recompute", RECOMPUTE)
def test_every_moment_grows_linearly_with_the_micro_batch(
    recompute: Literal["none", "upper", "whole"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines through two sizes go through a third and a fourth one."""
    small = measure_pass("tiny-resnet", TuningSection(), 64, recompute, "float32")
    measure_pass.cache_clear()
    monkeypatch.setattr("fedpath.core.tuning.measure._SIZES", (5, 16))
    large = measure_pass("tiny-resnet", TuningSection(), 64, recompute, "float32")
    measure_pass.cache_clear()
    for phase in ("forward", "backward", "backward_again", "kept"):
        one, other = getattr(small, phase), getattr(large, phase)
        torch.testing.assert_close(one.a_T, other.a_T, rtol=0, atol=64.0)
        torch.testing.assert_close(one.b_T, other.b_T, rtol=0, atol=16.0)
    assert small.flops_a_patch == pytest.approx(large.flops_a_patch)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resnet50_with_512_patches_of_224_px_fits_8_gb(precision: Literal["float32", "bfloat16"]) -> None:
    plan = make_plan(8, precision=precision)
    assert plan.choice.patches == 512
    assert plan.peak_bytes <= 8 * GB * (1 - SPARE)
    assert plan.allocated_bytes == plan.peak_bytes - CONTEXT
    # As measured elsewhere: 25 to 27 MB a patch in float32 with two of four layers frozen, all kept.
    kept = measure_pass("resnet50-layer4", TuningSection(), 224, "none", "float32").kept
    assert 20e6 < kept.b_T.item() < 27e6


def test_takes_the_cheapest_way_in_which_all_patches_fit() -> None:
    plans = [make_plan(gb) for gb in (24, 8, 2)]
    assert [plan.choice.recompute for plan in plans] == ["none", "upper", "whole"]
    assert [plan.choice.patches for plan in plans] == [512, 512, 512]
    assert plans[0].compute == 1 < plans[1].compute < plans[2].compute
    for plan in plans:
        assert plan.peak_bytes == sum(getattr(plan.parts, name) for name in plan.parts.__slots__)


def test_takes_as_many_patches_as_can_be_where_not_all_fit() -> None:
    tuning, budget = TuningSection(patches=Patches(most=4000, least=8)), 0.004
    plan = make_plan(budget, "tiny-resnet", tuning, device="cpu", patch_px=32)
    assert 8 < plan.choice.patches < 4000
    assert plan.choice.recompute == "whole"
    assert plan.peak_bytes <= budget * GB * (1 - SPARE)
    more = replace(plan.choice, patches=plan.choice.patches + 1, micro_batch=1)
    assert plan._predictor.parts(more).total > budget * GB * (1 - SPARE)
    (fewer,) = (lever for lever in plan.levers if "4000" in lever.name)
    assert fewer.used
    assert fewer.off > budget * GB


def test_levers_tell_the_peak_without_each() -> None:
    plan = make_plan(8)
    used = {lever.name: lever for lever in plan.levers if lever.used}
    assert list(used) == ["micro-batches of 64", "compute trained stages twice"]
    kept = used["compute trained stages twice"]
    assert kept.on == plan.peak_bytes
    assert kept.off == plan._predictor.parts(replace(plan.choice, recompute="none")).total > 12 * GB
    assert "1.27 ×" in kept.cost


def smallest_gb(error: ConfigError) -> float:
    """Return the budget that an error says would do."""
    smallest = float(error.message.split(" needs ")[1].split(" GB")[0])
    assert f"compute.vram_gb = {smallest:g}" in error.remedy
    return smallest


def test_offload_is_taken_only_with_deepspeed_and_only_when_nothing_else_does() -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(0.0001, "tiny-resnet", device="cpu", patch_px=32)
    less = 0.9 * smallest_gb(caught.value)
    assert make_plan(less, "tiny-resnet", device="cpu", patch_px=32, engine="deepspeed").choice.offload
    assert not make_plan(1, "tiny-resnet", device="cpu", patch_px=32, engine="deepspeed").choice.offload


@pytest.mark.parametrize(
    ("encoder", "tuning", "px", "device", "budget"),
    [("resnet50-layer4", None, 224, "cuda", 0.5), ("tiny-vit", LORA, 128, "cpu", 0.0005)],
)
def test_an_impossible_budget_says_the_smallest_that_would_do(
    encoder: str, tuning: TuningSection | None, px: int, device: str, budget: float
) -> None:
    with pytest.raises(ConfigError, match=f"no plan fits {budget} GB: .* on 64 patches of {px} px") as caught:
        make_plan(budget, encoder, tuning, device=device, patch_px=px)
    smallest = smallest_gb(caught.value)
    assert make_plan(smallest, encoder, tuning, device=device, patch_px=px).choice.patches >= 64
    with pytest.raises(ConfigError):
        make_plan(0.9 * smallest, encoder, tuning, device=device, patch_px=px)


def test_bfloat16_gives_way_where_its_copies_of_the_weights_are_too_much() -> None:
    smallest = {}
    for precision in ("float32", "bfloat16"):
        with pytest.raises(ConfigError) as caught:
            make_plan(0.0001, "tiny-vit", LORA, device="cpu", precision=precision, patch_px=128)  # type: ignore[arg-type]
        smallest[precision] = smallest_gb(caught.value)
    assert smallest["bfloat16"] <= smallest["float32"]
    assert (
        make_plan(1, "tiny-vit", LORA, device="cpu", precision="bfloat16", patch_px=128).choice.precision == "bfloat16"
    )


def test_what_cannot_be_planned_is_refused() -> None:
    with pytest.raises(ConfigError, match="encoder 'resnet5' is unknown") as caught:
        make_plan(8, "resnet5")
    assert "resnet50" in caught.value.remedy
    with pytest.raises(ConfigError, match="takes patches of 224 px, not 256"):
        make_plan(8, "vit-small-16", patch_px=256)
    with pytest.raises(ConfigError, match="attention layers"):
        make_plan(8, tuning=LORA)
    with pytest.raises(ConfigError, match="'bd', which reads clinical data"):
        make_plan(8, head="bd")


def test_a_tighter_plan_halves_the_micro_batch_and_keeps_less_until_nothing_is_left() -> None:
    plan: Plan | None = make_plan(
        1, "tiny-resnet", TuningSection(patches=Patches(most=6, least=6)), device="cpu", patch_px=32
    )
    seen = []
    while plan is not None:
        seen.append((plan.choice.micro_batch, plan.choice.recompute, plan.peak_bytes))
        plan = plan.tighter()
    assert [(size, recompute) for size, recompute, _ in seen] == [(6, "none"), (3, "upper"), (1, "whole")]
