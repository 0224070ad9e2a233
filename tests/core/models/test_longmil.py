"""LongMIL against a definition written out by hand: dense masks, norms and GELU in float64."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from literal import assert_gradients_equal, cross_entropy, random_bag
from literal_spatial import dense_attention, scattered_cells, squared_distances, tissue_cells
from torch import Tensor

from fedpath.core.bags import Bag
from fedpath.core.errors import ConfigError
from fedpath.core.models import BagModel, available_models, build_model
from fedpath.core.models.longmil import LongMilOptions

WIDTH, N_CLASSES, INNER, HEADS, RADIUS, FAR, WINDOWS = 5, 3, 12, 4, 3, 8, 6
OPTIONS = {"inner": INNER, "heads": HEADS, "radius": RADIUS, "far": FAR, "max_windows": WINDOWS}
WEIGHTS_C = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
FORMS = ["exact", "windows"]

both_forms = pytest.mark.parametrize("form", FORMS)


def make_model(*, seed: int = 1, **options: object) -> BagModel:
    return build_model("longmil", width=WIDTH, n_classes=N_CLASSES, options=OPTIONS | options, seed=seed).double()


def make_bag(cells_N2: Tensor, dtype: torch.dtype = torch.float64) -> Bag:
    return Bag("slide", random_bag(len(cells_N2), WIDTH, dtype).features_ND, 256 * cells_N2 + 1000, 256)


BAGS: dict[str, Tensor] = {
    "tissue with holes": tissue_cells(120),
    "scatter": scattered_cells(40, 30),
    "one patch": torch.zeros(1, 2, dtype=torch.int64),
    "two patches": torch.tensor([[0, 0], [2, 1]]),
    "all at one place": torch.zeros(70, 2, dtype=torch.int64),
    "one row": torch.stack([3 * torch.arange(30), torch.zeros(30, dtype=torch.int64)], dim=1),
    "one far away": torch.cat([tissue_cells(30), torch.tensor([[4000, 300]])]),
}


def literal_norm(p: dict[str, Tensor], name: str, x_NL: Tensor) -> Tensor:
    rows = []
    for x in x_NL:
        mean = sum(x) / len(x)
        variance = sum((v - mean) ** 2 for v in x) / len(x)
        rows.append((x - mean) / torch.sqrt(variance + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"])
    return torch.stack(rows)


def literal_windows(cells_N2: Tensor, limit: int) -> list[list[int]]:
    """The patches of each window; windows of 4 cells, or as often doubled as it takes."""
    edge = 4
    while True:
        found: dict[tuple[int, int], list[int]] = {}
        for i, (x, y) in enumerate(cells_N2.tolist()):
            found.setdefault((x // edge, y // edge), []).append(i)
        if len(found) <= limit:
            return list(found.values())
        edge *= 2


def literal_longmil(
    p: dict[str, Tensor], x_ND: Tensor, cells_N2: Tensor, *, blocks: int, form: str
) -> dict[str, Tensor]:
    """The paper's formulas, the last block global; shares only names with the model."""
    squared_NN, n = squared_distances(cells_N2, cells_N2), len(x_ND)
    x_NL = (x_ND @ p["embed.weight"].T + p["embed.bias"]).clamp(min=0)
    attention_HN = x_ND.new_zeros(HEADS, n)
    for b in range(blocks):
        name = f"blocks.{b}"
        joint_N3L = (literal_norm(p, f"{name}.attention_norm", x_NL) @ p[f"{name}.qkv.weight"].T).reshape(n, 3, -1)
        q, k, v = (
            torch.stack([joint_N3L[:, i, h * INNER // HEADS : (h + 1) * INNER // HEADS] for h in range(HEADS)])
            for i in range(3)
        )
        if b < blocks - 1:
            out_HNd, _ = dense_attention(q, k, v, squared_NN, radius=RADIUS)
        elif form == "exact":
            out_HNd, p_HNN = dense_attention(q, k, v, squared_NN, far=FAR)
            attention_HN = p_HNN.mean(dim=1)
        else:
            groups = literal_windows(cells_N2, WINDOWS)
            centres_M2 = torch.tensor([[round(sum(c) / len(g)) for c in cells_N2[g].T.tolist()] for g in groups])
            k_HMd, v_HMd = (torch.stack([t[:, group].mean(dim=1) for group in groups], dim=1) for t in (k, v))
            counts_M = torch.tensor([math.log(len(group)) for group in groups], dtype=torch.float64)
            squared_NM = squared_distances(cells_N2, centres_M2)
            out_HNd, p_HNM = dense_attention(q, k_HMd, v_HMd, squared_NM, far=FAR, log_counts_M=counts_M)
            for m, group in enumerate(groups):
                attention_HN[:, group] = (p_HNM[:, :, m].mean(dim=1) / len(group))[:, None].detach()
        joined_NL = torch.cat(list(out_HNd), dim=1)
        x_NL = x_NL + joined_NL @ p[f"{name}.proj.weight"].T + p[f"{name}.proj.bias"]
        hidden = literal_norm(p, f"{name}.mlp_norm", x_NL) @ p[f"{name}.mlp.0.weight"].T + p[f"{name}.mlp.0.bias"]
        gelu = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        x_NL = x_NL + gelu @ p[f"{name}.mlp.2.weight"].T + p[f"{name}.mlp.2.bias"]
    slide_L = literal_norm(p, "norm", sum(x_NL)[None] / n)[0]
    logits_C = p["head.weight"] @ slide_L + p["head.bias"]
    return {"logits": logits_C, "attention": attention_HN.detach(), "slide_vector": slide_L}


@pytest.mark.parametrize("bag", BAGS)
@both_forms
@pytest.mark.parametrize("training", [False, True])
def test_equals_the_literal_definition(bag: str, form: str, training: bool) -> None:
    cells_N2 = BAGS[bag]
    model = make_model(global_form=form, attention_dropout=0.0).train(training)
    slide, target = make_bag(cells_N2), 1
    output = model(slide)
    expected = literal_longmil(
        dict(model.named_parameters()), slide.features_ND, cells_N2 - cells_N2.amin(dim=0), blocks=3, form=form
    )
    torch.testing.assert_close(output.logits_C, expected["logits"], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(output.slide_vector_L, expected["slide_vector"], rtol=1e-10, atol=1e-12)
    if training:
        uniform_HN = torch.full_like(expected["attention"], 1 / len(cells_N2))
        torch.testing.assert_close(output.attention_KN, uniform_HN, rtol=1e-6, atol=0)
    else:
        torch.testing.assert_close(output.attention_KN, expected["attention"], rtol=1e-10, atol=1e-13)
    for weights_C in (None, WEIGHTS_C):
        wanted = cross_entropy(list(expected["logits"]), target, weights_C)
        torch.testing.assert_close(model.loss(output, target, weights_C), wanted, rtol=1e-10, atol=1e-12)
    assert_gradients_equal(model, model.loss(output, target, WEIGHTS_C), wanted)


@both_forms
@pytest.mark.parametrize("local_blocks", [0, 1, 4])
def test_equals_the_literal_definition_with_other_numbers_of_blocks(form: str, local_blocks: int) -> None:
    cells_N2 = BAGS["scatter"] - BAGS["scatter"].amin(dim=0)
    model, slide = make_model(global_form=form, local_blocks=local_blocks).eval(), make_bag(cells_N2)
    expected = literal_longmil(
        dict(model.named_parameters()), slide.features_ND, cells_N2, blocks=local_blocks + 1, form=form
    )
    output = model(slide)
    torch.testing.assert_close(output.logits_C, expected["logits"], rtol=1e-10, atol=1e-12)
    assert_gradients_equal(model, model.loss(output, 1), cross_entropy(list(expected["logits"]), 1))


@both_forms
def test_single_precision_is_near(form: str) -> None:
    """With the paper's sizes, features as files have them."""
    options = {"global_form": form, "max_windows": 40}
    model = build_model("longmil", width=64, n_classes=2, options=options, seed=1).eval()
    cells_N2 = tissue_cells(700)
    bag = Bag("slide", random_bag(700, 64, torch.float16).features_ND, 256 * cells_N2, 256)
    single, double = model(bag), model.double()(bag)
    torch.testing.assert_close(single.logits_C.double(), double.logits_C, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(single.attention_KN.double(), double.attention_KN, rtol=1e-4, atol=1e-8)


@both_forms
def test_bfloat16_products_are_near(form: str) -> None:
    """Under autocast the windows' means and what each patch receives stay float32: hundreds of numbers are summed."""
    options = OPTIONS | {"global_form": form, "max_windows": 2, "attention_dropout": 0.0}
    model = build_model("longmil", width=WIDTH, n_classes=N_CLASSES, options=options, seed=1)
    bag = make_bag(tissue_cells(3000), torch.float32)
    for training in (True, False):
        model.train(training)
        expected = model(bag)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(bag)
        torch.testing.assert_close(output.logits_C.float(), expected.logits_C, rtol=0.02, atol=0.02)
        torch.testing.assert_close(output.slide_vector_L.float(), expected.slide_vector_L, rtol=0.05, atol=0.05)
        sums_K = output.attention_KN.sum(dim=1)
        assert output.attention_KN.dtype == torch.float32
        torch.testing.assert_close(sums_K, torch.ones_like(sums_K), rtol=0, atol=1e-4)
        torch.testing.assert_close(output.attention_KN, expected.attention_KN, rtol=0.1, atol=1e-6)
    gradients = [torch.autograd.grad(model.loss(o, 1), list(model.parameters())) for o in (output, expected)]
    for got, wanted in zip(*gradients, strict=True):
        assert (got - wanted).norm() < 0.1 * wanted.norm() + 1e-3


def test_the_forms_agree_where_every_patch_is_a_window() -> None:
    cells_N2 = 4 * scattered_cells(60, 12)
    cells_N2 = cells_N2 - cells_N2.amin(dim=0)
    options: dict[str, Any] = {"max_windows": 60, "radius": 10}
    exact, windows = (make_model(global_form=form, **options).eval()(make_bag(cells_N2)) for form in FORMS)
    torch.testing.assert_close(windows.logits_C, exact.logits_C, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(windows.attention_KN, exact.attention_KN, rtol=1e-12, atol=1e-14)


def test_the_forms_agree_where_the_patches_of_a_window_are_equal() -> None:
    """Copies of a patch in its cell see what it sees, block after block."""
    places_N2 = 4 * scattered_cells(30, 9)
    of_place_N = torch.arange(100) % 30
    features_ND = random_bag(30, WIDTH).features_ND[of_place_N]
    bag = Bag("slide", features_ND, 256 * places_N2[of_place_N], 256)
    exact, windows = (make_model(global_form=form, max_windows=512).eval()(bag) for form in FORMS)
    torch.testing.assert_close(windows.logits_C, exact.logits_C, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(windows.attention_KN, exact.attention_KN, rtol=1e-12, atol=1e-14)


def test_a_patch_sees_as_far_as_the_local_blocks_reach() -> None:
    """Before the global block, each local one carries what a patch knows one radius further: no further."""
    row_N2 = torch.stack([torch.arange(40), torch.zeros(40, dtype=torch.int64)], dim=1)
    model, bag = make_model(local_blocks=2).eval(), make_bag(row_N2)
    seen: list[Tensor] = []
    model.blocks[1].register_forward_hook(lambda _module, _inputs, output: seen.append(output.detach()))
    changed_ND = bag.features_ND.clone()
    changed_ND[20] += 5
    model(bag)
    model(Bag("slide", changed_ND, bag.coords_N2, 256))
    differs_N = (seen[0] != seen[1]).any(dim=1)
    assert differs_N.nonzero().flatten().tolist() == list(range(20 - 2 * RADIUS, 20 + 2 * RADIUS + 1))


@both_forms
def test_attention_is_what_the_patches_receive(form: str) -> None:
    attention_HN = make_model(global_form=form).eval()(make_bag(BAGS["tissue with holes"])).attention_KN
    assert attention_HN.shape == (HEADS, 120)
    assert (attention_HN > 0).all()
    torch.testing.assert_close(attention_HN.sum(dim=1), torch.ones(HEADS, dtype=torch.float64))
    assert attention_HN.std() > 0


@both_forms
@pytest.mark.parametrize("noisy", [0, 1, 2])
def test_every_block_has_dropout_in_training_and_none_in_evaluation(form: str, noisy: int) -> None:
    """Only one block's attention is let through."""
    model, bag = make_model(global_form=form, attention_dropout=0.5), make_bag(BAGS["tissue with holes"])
    with torch.no_grad():
        for number, block in enumerate(model.blocks):
            if number != noisy:
                block.proj.weight.zero_()
    model.train()
    torch.manual_seed(5)
    first, second = model(bag).logits_C, model(bag).logits_C
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(model(bag).logits_C, first)
    model.eval()
    assert torch.equal(model(bag).logits_C, model(bag).logits_C)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_any_float_type_meet_the_model_in_its_own(dtype: torch.dtype) -> None:
    model = build_model("longmil", width=WIDTH, n_classes=N_CLASSES, options=OPTIONS, seed=1).eval()
    bag = make_bag(BAGS["scatter"], dtype)
    widened = Bag("slide", bag.features_ND.float(), bag.coords_N2, 256)
    assert torch.equal(model(bag).logits_C, model(widened).logits_C)


def test_patches_of_a_slide_without_a_patch_size_and_off_by_a_pixel_see_each_other() -> None:
    """No two corners share a row or column, so no file tells the size."""
    cells_N2 = BAGS["tissue with holes"]
    model, bag = make_model().eval(), make_bag(cells_N2)
    jitter_N2 = torch.randint(-1, 2, (120, 2), generator=torch.Generator().manual_seed(0))
    jittered = Bag("slide", bag.features_ND, bag.coords_N2 + jitter_N2, 0)
    torch.testing.assert_close(model(jittered).logits_C, model(bag).logits_C)


@pytest.mark.parametrize(
    "options",
    [{"heads": 5, "inner": 384}, {"heads": 5}, {"inner": 30}],
    ids=["both given", "heads against the default width", "width against the default heads"],
)
def test_heads_must_divide_the_width(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"model\.options\.inner = \d+: not a multiple of heads = \d") as caught:
        build_model("longmil", width=WIDTH, n_classes=2, options=options, seed=0)
    assert "inner = " in (caught.value.remedy or "")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("heads", 0),
        ("inner", 0),
        ("local_blocks", -1),
        ("radius", -1),
        ("far", 0),
        ("far", 4097),
        ("max_windows", 0),
        ("attention_dropout", 1.0),
        ("global_form", "dense"),
    ],
)
def test_values_out_of_range_name_the_option(option: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"model\.options\.{option} = "):
        make_model(**{option: value})


def test_the_defaults_are_the_papers() -> None:
    assert LongMilOptions().model_dump() == {
        "input_norm": "none",
        "inner": 384,
        "heads": 4,
        "local_blocks": 2,
        "radius": 10,
        "far": 100,
        "global_form": "exact",
        "max_windows": 512,
        "attention_dropout": 0.05,
    }
    (row,) = [model for model in available_models() if model.name == "longmil"]
    assert {option.name for option in row.options} == set(LongMilOptions.model_fields)
    assert all(option.description for option in row.options)


def test_the_state_holds_parameters_only() -> None:
    """The slopes are constants: nothing of them is exchanged."""
    model = make_model()
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    assert model.parameter_groups() == {"image": list(model.state_dict())}


_PEAKS = """
from pathlib import Path
import torch
from fedpath.core.bags import Bag
from fedpath.core.models import build_model

def resident(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key)))

def step(n):
    place_N = torch.arange(n)
    edge = int((1.6 * n) ** 0.5)
    coords_N2 = 256 * torch.stack([place_N % edge, place_N // edge + place_N // edge // 20 * 3], dim=1)
    model.loss(model(Bag("slide", torch.ones(n, 8, dtype=torch.float16), coords_N2, 256)), 1).backward()

torch.set_num_threads(1)
model = build_model("longmil", width=8, n_classes=2, options={options}, seed=1).train()
step(500)
for n in {sizes}:
    before = resident("VmRSS")
    step(n)
    print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads the peak of resident memory as Linux tells it"
)
@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"global_form": "windows", "inner": 48, "heads": 4, "radius": 5}, (5_000, 20_000)),
        ({"global_form": "exact", "inner": 16, "heads": 1, "radius": 5, "local_blocks": 1}, (3_000, 12_000)),
    ],
    ids=FORMS[::-1],
)
def test_memory_grows_with_the_patches_and_not_with_their_pairs(
    options: dict[str, object], sizes: tuple[int, int]
) -> None:
    """Forward and backward in a process of its own; one byte a pair would be 400 or 144 MB more."""
    code = _PEAKS.format(options=options, sizes=sizes)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    small, large = map(int, done.stdout.split())
    assert large < 4 * small * 1.4, (small, large)
