"""The tuner against the plain computation: all patches through the encoder in one batch, with everything kept."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fedpath.core.bags import Bag
from fedpath.core.config.model import ModelSection
from fedpath.core.config.stages import TuningSection
from fedpath.core.encoders.registry import build_encoder
from fedpath.core.errors import ConfigError
from fedpath.core.exchange.groups import load_arrays, to_arrays
from fedpath.core.tuning.augment import augment, draw_changes
from fedpath.core.tuning.build import build_tuner, tuned_encoder
from fedpath.core.tuning.choice import RECOMPUTE, MemoryChoice, Recompute
from fedpath.core.tuning.model import SparseTuner, micro_batches

K = 7
STAGES = ("tiny-resnet", TuningSection())
ADAPTERS = ("tiny-vit", TuningSection(adapter="lora", rank=2))


def make_bag(px: int, seed: int = 0) -> Bag:
    generator = torch.Generator().manual_seed(seed)
    pixels_NHWC = torch.randint(0, 256, (K, px, px, 3), dtype=torch.uint8, generator=generator)
    return Bag("s", torch.zeros(K, 0), torch.zeros(K, 2, dtype=torch.int64), px, pixels_NHWC=pixels_NHWC)


def make_tuner(
    what: tuple[str, TuningSection], micro_batch: int = K, recompute: Recompute = "none", head: str = "clam-sb"
) -> SparseTuner:
    name, tuning = what
    tuner = build_tuner(
        encoder=build_encoder(name),
        encoder_name=name,
        head=ModelSection(name=head),
        tuning=tuning,
        n_classes=2,
        seed=3,
        learning_rate=1e-4,
        memory=MemoryChoice(K, micro_batch, recompute),
    )
    if tuning.adapter == "lora":  # at the start half of them have no gradient
        for parameter in tuner.encoder.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    return tuner


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def plain(tuner: SparseTuner, bag: Bag, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The computation that all others must equal, written out."""
    tuner = copy.deepcopy(tuner).train()
    assert bag.pixels_NHWC is not None
    torch.manual_seed(seed)
    changes = draw_changes(K)
    rgb_KCHW = augment(bag.pixels_NHWC.permute(0, 3, 1, 2).float() / 255, changes)
    features_KD = tuner.encoder(rgb_KCHW.double())
    output = tuner.head(replace(bag, features_ND=features_KD))
    loss = tuner.head.loss(output, 1)
    loss.backward()
    return loss.detach(), gradients(tuner)


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("micro_batch", [1, 3, K, K + 3])
@pytest.mark.parametrize("what", [STAGES, ADAPTERS], ids=["stages", "lora"])
def test_gradients_are_those_of_one_batch_through_the_encoder(
    what: tuple[str, TuningSection], micro_batch: int, recompute: Recompute
) -> None:
    bag = make_bag(32 if what is STAGES else 128)
    tuner = make_tuner(what, micro_batch, recompute).double().train()
    wanted_loss, wanted = plain(tuner, bag, seed=5)
    torch.manual_seed(5)
    loss = tuner.loss(tuner(bag), 1)
    loss.backward()
    found = gradients(tuner)
    assert found.keys() == wanted.keys() == {name for name, p in tuner.named_parameters() if p.requires_grad}
    torch.testing.assert_close(loss.detach(), wanted_loss, rtol=1e-12, atol=0)
    # A softmax does not see what is added to all its inputs: the gradient of such a bias is what rounding leaves of 0,
    # on some processors nothing, so it is held against the size of the others.
    scale = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 0 or name == "head.score.bias", name
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12 * scale)


@pytest.mark.parametrize("what", [STAGES, ADAPTERS], ids=["stages", "lora"])
def test_what_is_kept_changes_no_bit(what: tuple[str, TuningSection]) -> None:
    bag = make_bag(32 if what is STAGES else 128)
    seen = []
    for recompute in RECOMPUTE:
        tuner = make_tuner(what, 3, recompute).train()
        torch.manual_seed(5)
        output = tuner(bag)
        tuner.loss(output, 1).backward()
        seen.append([output.logits_C.detach(), *gradients(tuner).values(), torch.rand(3)])
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


def test_in_bfloat16_small_micro_batches_lose_no_gradient() -> None:
    """Summed in bfloat16, the gradients of many micro-batches would lose their small terms."""
    bag = make_bag(32)
    pixels_NHWC = bag.pixels_NHWC.repeat(40, 1, 1, 1) if bag.pixels_NHWC is not None else None
    bag = replace(bag, pixels_NHWC=pixels_NHWC)

    def of(micro_batch: int, bfloat16: bool, recompute: Recompute = "upper") -> Tensor:
        tuner = make_tuner(STAGES, micro_batch, recompute, head="mean-pool").eval()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            output = tuner(bag)
        tuner.loss(replace(output, logits_C=output.logits_C.float()), 1).backward()
        return torch.cat([g.flatten() for name, g in gradients(tuner).items() if name.startswith("encoder")])

    exact = of(280, bfloat16=False)
    errors = {m: float((of(m, bfloat16=True) - exact).norm() / exact.norm()) for m in (280, 1)}
    assert 0 < errors[280] < 0.1
    assert errors[1] < 1.1 * errors[280]  # 1.35 with autocast's cache
    kept, again = of(3, bfloat16=True, recompute="none"), of(3, bfloat16=True)
    assert torch.equal(kept, again)


def test_evaluation_changes_no_patch_and_keeps_no_graph() -> None:
    tuner, bag = make_tuner(STAGES, 3).eval(), make_bag(32)
    with torch.inference_mode():
        first, second = tuner(bag), tuner(bag)
    assert torch.equal(first.logits_C, second.logits_C)
    assert not first.logits_C.requires_grad
    assert bag.pixels_NHWC is not None
    rgb_KCHW = bag.pixels_NHWC.permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        features_KD = tuned_encoder(tuner)(rgb_KCHW)
        wanted = tuner.head(replace(bag, features_ND=features_KD))
    torch.testing.assert_close(first.logits_C, wanted.logits_C)


def test_training_draws_new_changes_each_time_and_none_without_augmentation() -> None:
    bag = make_bag(32)
    assert bag.pixels_NHWC is not None
    with torch.no_grad():
        tuner = make_tuner(STAGES).train()
        assert not torch.equal(tuner.features(bag.pixels_NHWC), tuner.features(bag.pixels_NHWC))
        still = make_tuner(("tiny-resnet", TuningSection(augment=False))).train()
        assert torch.equal(still.features(bag.pixels_NHWC), still.eval().features(bag.pixels_NHWC))


def test_groups_hold_everything_once_and_the_frozen_one_stays() -> None:
    tuner = make_tuner(STAGES)
    groups = tuner.parameter_groups()
    assert list(groups) == ["frozen", "encoder", "head"]
    assert sorted(name for names in groups.values() for name in names) == sorted(tuner.state_dict())
    trained = {name for name, p in tuner.named_parameters() if p.requires_grad}
    assert trained == {*groups["encoder"], *groups["head"]}
    assert all(name.startswith(("encoder.layer3.", "encoder.layer4.")) for name in groups["encoder"])
    assert not any("running" in name for name in groups["encoder"])
    assert tuner.trained_groups(make_bag(32)) == {"encoder", "head"}
    assert dict(tuner.learning_rate_scales) == {"encoder": pytest.approx(0.1)}
    arrays = to_arrays(tuner)
    assert {name.partition("/")[0] for name in arrays} == {"encoder", "head"}
    other = make_tuner(STAGES)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    load_arrays(other, arrays)
    assert all(torch.equal(a, b) for a, b in zip(tuner.state_dict().values(), other.state_dict().values(), strict=True))


def test_only_adapters_train_with_lora() -> None:
    groups = make_tuner(ADAPTERS).parameter_groups()
    assert groups["encoder"]
    assert all("lora_" in name for name in groups["encoder"])


def test_both_sides_build_the_same_bits() -> None:
    one, other = (make_tuner(ADAPTERS).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_micro_batches_are_few_and_nearly_equal() -> None:
    def sizes(n: int, most: int) -> list[int]:
        return [rows.stop - rows.start for rows in micro_batches(n, MemoryChoice(n, most, "none"))]

    assert sizes(7, 3) == [2, 2, 3]
    assert sizes(65, 64) == [32, 33]
    assert sizes(2, 64) == [2]


def test_a_slide_without_pixels_and_wrong_heads_are_refused() -> None:
    bag = replace(make_bag(32), pixels_NHWC=None)
    with pytest.raises(ValueError, match=r"slide 's'.*pixels"):
        make_tuner(STAGES)(bag)
    with pytest.raises(ConfigError, match="'bd', which reads clinical data"):
        make_tuner(STAGES, head="bd")
    with pytest.raises(ConfigError, match="lora"):
        make_tuner(("tiny-resnet", TuningSection(adapter="lora")))
    with pytest.raises(ConfigError, match=r"tiny-resnet.*5 stages"):
        make_tuner(("tiny-resnet", TuningSection(trainable_stages=9)))
