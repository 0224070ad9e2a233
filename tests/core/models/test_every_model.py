"""What holds for every model of the registry, whichever it is: a new row is tested here without being named."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from literal import random_bag
from literal_clinical import SCHEMA, STANDARD, record

from fedpath.core.bags import Bag
from fedpath.core.clinical.record import ClinicalRecord
from fedpath.core.models import BagModel, BagOutput, available_models, build_model, load_model, save_model
from fedpath.core.models.multimodal.parts import MultimodalModel
from fedpath.core.models.randomness import seeded
from fedpath.core.training.precision import forward

WIDTH, N_CLASSES = 12, 3
MODELS = {model.name: model for model in available_models()}
# Small sizes, for the models that have them.
SMALL: dict[str, Any] = {"inner": 16, "attention": 8}
# And for a large slide the forms whose time is linear.
SMALLER = SMALL | {"inner": 8, "heads": 2, "landmarks": 16, "radius": 3, "global_form": "windows", "max_windows": 64}

# What every patient has who has clinical data: a number, a word, an answer; and one field that is missing.
RECORD = record(61.0, 2, 1, None)

every_model = pytest.mark.parametrize("name", MODELS)
both_modes = pytest.mark.parametrize("training", [False, True])


def known(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return those of the options that the model has, itself or in its slide encoder."""
    names = {option.name: option.default for option in MODELS[name].options}
    inside = {"encoder_options": known(names["encoder"], options)} if "encoder" in names else {}
    return {name: options[name] for name in names if name in options} | inside


def make_model(name: str, **options: Any) -> BagModel:
    options = known(name, SMALL | options)
    model = build_model(name, width=WIDTH, n_classes=N_CLASSES, options=options, seed=1, clinical=SCHEMA)
    if isinstance(model, MultimodalModel):
        model.use_standard(STANDARD)
    return model


def tissue(n_instances: int, dtype: torch.dtype = torch.float32, clinical: ClinicalRecord | None = RECORD) -> Bag:
    """A bag of patches in a square with a hole, of a patient with clinical data."""
    edge = int((2 * n_instances) ** 0.5) + 1
    generator = torch.Generator().manual_seed(n_instances)
    cells_N = torch.randperm(edge * edge, generator=generator)[:n_instances]
    coords_N2 = 256 * torch.stack([cells_N % edge, cells_N // edge], dim=1)
    return Bag("slide", random_bag(n_instances, WIDTH, dtype).features_ND, coords_N2, 256, clinical=clinical)


def in_one_row(bag: Bag) -> Bag:
    coords_N2 = torch.stack([256 * torch.arange(len(bag)), torch.zeros(len(bag), dtype=torch.int64)], dim=1)
    return Bag(bag.slide_id, bag.features_ND, coords_N2, 256)


EDGE_BAGS: dict[str, Callable[[], Bag]] = {
    "one patch": lambda: tissue(1),
    "two patches": lambda: tissue(2),
    "all patches at one place": lambda: random_bag(30, WIDTH, torch.float32),
    "one row": lambda: in_one_row(tissue(30)),
    "one column": lambda: Bag("slide", tissue(30).features_ND, in_one_row(tissue(30)).coords_N2.flip(1), 256),
    "all patches equal": lambda: Bag("slide", torch.full((30, WIDTH), 3.0), tissue(30).coords_N2, 256),
    "features all 0": lambda: Bag("slide", torch.zeros(30, WIDTH), tissue(30).coords_N2, 256),
    "one patch far away": lambda: Bag(
        "slide", tissue(30).features_ND, torch.cat([tissue(29).coords_N2, torch.tensor([[10**6, 10**6]])]), 256
    ),
    "unknown patch size": lambda: Bag("slide", tissue(30).features_ND, tissue(30).coords_N2, 0),
}


def assert_sound(bag: Bag, output: BagOutput, rounding: float = 1e-4) -> None:
    """Finite, of the promised shapes, attention a distribution a row."""
    assert output.logits_C.shape == (N_CLASSES,)
    assert output.slide_vector_L.dim() == 1
    assert output.attention_KN.shape[1:] == (len(bag),)
    for tensor in (output.logits_C, output.attention_KN, output.slide_vector_L, output.branch_logits_KC):
        assert tensor is None or tensor.isfinite().all()
    assert (output.attention_KN >= 0).all()
    sums_K = output.attention_KN.detach().double().sum(dim=1)
    torch.testing.assert_close(sums_K, torch.ones_like(sums_K), rtol=0, atol=rounding)


def gradients(model: BagModel, bag: Bag, target: int = 1) -> list[torch.Tensor]:
    model.zero_grad()
    model.loss(model(bag), target).backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@every_model
@both_modes
@pytest.mark.parametrize("input_norm", ["none", "layer", "bag"])
def test_outputs_are_sound(name: str, training: bool, input_norm: str) -> None:
    model = make_model(name, input_norm=input_norm).train(training)
    for bag in (tissue(70), tissue(70, clinical=None)):
        output = model(bag)
        assert_sound(bag, output)
        assert output.slide_vector_L.shape == (model.slide_width,)


with_and_without = pytest.mark.parametrize("clinical", [RECORD, None], ids=["table", "no table"])


@every_model
@both_modes
@with_and_without
@pytest.mark.parametrize("edge", EDGE_BAGS)
def test_edge_bags_stay_finite(name: str, training: bool, clinical: ClinicalRecord | None, edge: str) -> None:
    if clinical is not None and not MODELS[name].uses_clinical:
        return
    model, bag = make_model(name).train(training), replace(EDGE_BAGS[edge](), clinical=clinical)
    output = model(bag)
    assert_sound(bag, output)
    for target in range(N_CLASSES):
        assert model.loss(output, target).isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(model, bag))


@every_model
def test_every_parameter_learns_from_some_class(name: str) -> None:
    model, bag = make_model(name).train(), tissue(70)
    torch.manual_seed(0)
    learned = [torch.zeros_like(parameter, dtype=torch.bool) for parameter in model.parameters()]
    for target in range(N_CLASSES):
        model.zero_grad()
        model.loss(model(bag), target).backward()
        for seen, parameter in zip(learned, model.parameters(), strict=True):
            assert parameter.grad is not None
            seen |= parameter.grad != 0
    assert [n for (n, _), seen in zip(model.named_parameters(), learned, strict=True) if not seen.any()] == []


@every_model
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_any_float_type_are_taken(name: str, dtype: torch.dtype) -> None:
    model, bag = make_model(name).eval(), tissue(70, dtype)
    widened = replace(bag, features_ND=bag.features_ND.float())
    output = model(bag)
    assert output.logits_C.dtype == torch.float32
    torch.testing.assert_close(output.logits_C, model(widened).logits_C, rtol=1e-4, atol=1e-5)
    assert all(gradient.isfinite().all() for gradient in gradients(model.train(), bag))


@every_model
def test_half_the_precision_is_enough(name: str) -> None:
    model, bag = make_model(name).eval(), tissue(70, torch.float16)
    expected = model(bag)
    output = forward(model, bag, device=torch.device("cpu"), precision="bfloat16")
    assert_sound(bag, output, rounding=0.02)
    model.loss(output, 1).backward()
    torch.testing.assert_close(output.logits_C, expected.logits_C, rtol=0.05, atol=0.05)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@every_model
def test_evaluation_draws_nothing(name: str) -> None:
    model, bag = make_model(name).eval(), tissue(70)
    before = torch.get_rng_state()
    first = model(bag)
    loss = model.loss(first, 1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    with torch.inference_mode():
        again = model(bag)
    torch.testing.assert_close(again.logits_C, first.logits_C)
    torch.testing.assert_close(again.attention_KN, first.attention_KN)
    assert torch.equal(model(bag).logits_C, first.logits_C)
    assert torch.equal(model.loss(model(bag), 1), loss)


@every_model
def test_the_same_seed_trains_to_the_same_bits(name: str) -> None:
    def steps(before: int) -> list[torch.Tensor]:
        model = make_model(name).train()
        torch.manual_seed(before)
        with seeded(5):
            optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
            for n_instances in (70, 9, 70):
                gradients(model, tissue(n_instances, clinical=None if n_instances == 9 else RECORD))
                optimizer.step()
        return list(model.state_dict().values())

    assert all(torch.equal(one, other) for one, other in zip(steps(1), steps(2), strict=True))


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if "order" not in model.needs])
def test_the_order_of_the_patches_does_not_matter(name: str) -> None:
    """Of every model but those that say among their needs that the order of a bag's patches counts."""
    model, bag = make_model(name).double().eval(), tissue(70, torch.float64)
    shuffled_N = torch.randperm(len(bag), generator=torch.Generator().manual_seed(0))
    output = model(bag)
    moved = model(replace(bag, features_ND=bag.features_ND[shuffled_N], coords_N2=bag.coords_N2[shuffled_N]))
    torch.testing.assert_close(moved.logits_C, output.logits_C, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(moved.attention_KN, output.attention_KN[:, shuffled_N], rtol=1e-9, atol=1e-11)


@every_model
def test_groups_are_disjoint_and_cover_everything(name: str) -> None:
    for input_norm in ("none", "layer", "bag"):
        model = make_model(name, input_norm=input_norm)
        names = [entry for group in model.parameter_groups().values() for entry in group]
        assert sorted(names) == sorted(model.state_dict())


@every_model
@with_and_without
def test_a_step_changes_the_groups_that_it_is_said_to_train(name: str, clinical: ClinicalRecord | None) -> None:
    model, bag = make_model(name).train(), tissue(70, clinical=clinical)
    before = {entry: tensor.clone() for entry, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for target in range(N_CLASSES):
        gradients(model, bag, target)
        optimizer.step()
    after = model.state_dict()
    changed = {
        group
        for group, entries in model.parameter_groups().items()
        if any(not torch.equal(before[entry], after[entry]) for entry in entries)
    }
    assert changed == model.trained_groups(bag)
    assert changed | model.clinical_groups | model.agreed_groups == set(model.parameter_groups())


@every_model
def test_a_saved_model_comes_back(name: str, tmp_path: Path) -> None:
    model, bag, path = make_model(name, input_norm="layer"), tissue(70), tmp_path / "best.safetensors"
    metadata = {
        "name": name,
        "width": str(WIDTH),
        "n_classes": str(N_CLASSES),
        "options": json.dumps(known(name, SMALL | {"input_norm": "layer"})),
        "labels": json.dumps(["a", "b", "c"]),
        "clinical": SCHEMA.model_dump_json(),
    }
    save_model(path, model.state_dict(), metadata)
    loaded, _ = load_model(path)
    assert not loaded.training
    assert torch.equal(loaded(bag).logits_C, model.eval()(bag).logits_C)


@every_model
def test_class_weights_scale_the_classification_terms(name: str) -> None:
    """The loss is some constant + the target's weight · a positive number, and 1 is no weight."""
    model = make_model(name).double().eval()
    output, target = model(tissue(70)), 1

    def loss(*weights: float) -> float:
        return model.loss(output, target, torch.tensor(weights, dtype=torch.float64)).item()

    slope = loss(9, 2, 9) - loss(9, 1, 9)
    assert slope > 0
    assert loss(9, 5, 9) == pytest.approx(loss(9, 1, 9) + 4 * slope)
    assert loss(1, 1, 1) == loss(9, 1, 0.1) == pytest.approx(model.loss(output, target).item())


@every_model
def test_a_large_slide_fits(name: str) -> None:
    model, bag = make_model(name, **SMALLER).train(), tissue(50_000, torch.float16)
    assert all(gradient.isfinite().all() for gradient in gradients(model, bag))
    with torch.inference_mode():
        assert_sound(bag, model.eval()(bag))
