"""Mixed precision: who gets it, and that nothing but the matrix products is in it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedpath.core.bags import Bag
from fedpath.core.cohort import Example
from fedpath.core.errors import ConfigError
from fedpath.core.models import BagModel, BagOutput, build_model
from fedpath.core.models.protocol import weighted_cross_entropy
from fedpath.core.training import TrainSettings, evaluate, train
from fedpath.core.training.device import deterministic
from fedpath.core.training.precision import choose_precision, fast_bfloat16, forward

CPU = torch.device("cpu")
WIDTH = 8


def make_examples(n: int) -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    examples = []
    for index in range(n):
        features_ND = torch.randn(20, WIDTH, generator=generator)
        features_ND[:5, 0] += 3.0 * (index % 2)
        bag = Bag(f"s{index}", features_ND.half(), torch.zeros(20, 2, dtype=torch.int64), 256)
        examples.append(Example(bag, index % 2, f"p{index}", f"s{index}"))
    return examples


@dataclass(frozen=True, slots=True)
class WideOutput(BagOutput):
    """A model's own output, with a tuple, a whole number, another model's output and nothing."""

    parts: tuple[Tensor, ...] = ()
    picked_N: Tensor | None = None
    inner: BagOutput | None = None


class Watched(BagModel):
    """Notes the types it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, 2)
        self.seen: dict[str, Any] = {}

    def forward(self, bag: Bag) -> BagOutput:
        logits_NC = self.head(bag.features_ND.float())
        self.seen["product"] = logits_NC.dtype
        attention_KN = torch.full((1, len(bag)), 1 / len(bag), dtype=logits_NC.dtype)
        return WideOutput(
            logits_NC.mean(dim=0),
            attention_KN,
            logits_NC[0],
            parts=(logits_NC,),
            picked_N=torch.arange(3),
            inner=BagOutput(logits_NC[0], attention_KN, logits_NC[0]),
        )

    def loss(self, output: BagOutput, target: int, class_weights_C: Tensor | None = None) -> Tensor:
        assert isinstance(output, WideOutput)
        assert output.picked_N is not None
        assert output.inner is not None
        self.seen["output"] = {output.logits_C.dtype, output.attention_KN.dtype, output.parts[0].dtype}
        self.seen["inner"] = {output.inner.logits_C.dtype, output.inner.slide_vector_L.dtype}
        self.seen["whole"] = output.picked_N.dtype
        self.seen["autocast in loss"] = torch.is_autocast_enabled("cpu")
        loss = weighted_cross_entropy(output.logits_C[None], target, class_weights_C)
        self.seen["loss"] = loss.dtype
        return loss

    def parameter_groups(self) -> dict[str, list[str]]:
        return {"image": list(self.state_dict())}


def test_auto_takes_bfloat16_on_a_cpu_with_amx_only() -> None:
    has_amx = "amx_tile" in Path("/proc/cpuinfo").read_text()
    assert fast_bfloat16(CPU) == has_amx
    assert choose_precision("auto", CPU) == ("bfloat16" if has_amx else "float32")


def test_what_is_asked_for_on_a_cpu_is_done() -> None:
    assert choose_precision("float32", "cpu") == "float32"
    assert choose_precision("bfloat16", "cpu") == "bfloat16"  # slow without AMX, but right


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_gpu_without_bfloat16_is_an_error_with_a_remedy() -> None:
    assert not fast_bfloat16("cuda")
    assert choose_precision("auto", "cuda") == "float32"
    with pytest.raises(ConfigError, match=r'bfloat16.*compute.precision = "auto"'):
        choose_precision("bfloat16", "cuda")


def test_products_are_bfloat16_and_all_else_float32() -> None:
    model = Watched()
    gradients: set[torch.dtype] = set()
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: gradients.add(gradient.dtype))
    train(model, make_examples(2), TrainSettings(1, 1e-3, precision="bfloat16"), seed=0)
    assert model.seen == {
        "product": torch.bfloat16,
        "output": {torch.float32},
        "inner": {torch.float32},
        "whole": torch.int64,
        "autocast in loss": False,
        "loss": torch.float32,
    }
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert gradients == {torch.float32}
    evaluate(model, make_examples(2))
    assert model.seen["product"] == torch.float32


def test_float32_hands_over_the_models_own_output() -> None:
    model, bag = Watched(), make_examples(1)[0].bag
    output = forward(model, bag, device=CPU, precision="float32")
    assert isinstance(output, WideOutput)
    assert torch.equal(output.logits_C, model(bag).logits_C)
    assert model.seen["product"] == torch.float32


def test_bfloat16_stays_near_float32_and_has_bits_of_its_own() -> None:
    def run(precision: Any) -> tuple[BagModel, float]:
        model = build_model("acmil", width=WIDTH, n_classes=2, options={"inner": 8, "attention": 8}, seed=0)
        result = train(model, make_examples(12), TrainSettings(3, 1e-3, precision=precision), seed=0)
        return model, result.loss

    (single, single_loss), (mixed, mixed_loss), (again, again_loss) = map(run, ("float32", "bfloat16", "bfloat16"))
    assert mixed_loss == pytest.approx(single_loss, rel=0.02)
    assert mixed_loss != single_loss
    assert mixed_loss == again_loss
    for name, value in mixed.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        torch.testing.assert_close(value, single.state_dict()[name], rtol=0, atol=0.02)


def test_reproducible_kernels_are_asked_for_on_a_gpu_and_the_callers_choice_comes_back() -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    with deterministic(CPU):
        assert not torch.are_deterministic_algorithms_enabled()
    with deterministic(torch.device("cuda")):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory == fill
