"""TransMIL against a definition written out by hand: neighbourhood sums and explicit matrices in float64."""

import itertools
import math

import pytest
import torch
from literal import assert_gradients_equal, cross_entropy, random_bag, record_kept
from literal_nystrom import literal_nystrom, literal_softmax
from torch import Tensor
from torch.nn.functional import conv2d

from fedpath.core.bags import Bag
from fedpath.core.errors import ConfigError
from fedpath.core.models import BagModel, build_model
from fedpath.core.models.transmil import PyramidPosition

WIDTH, N_CLASSES, INNER, HEADS, LANDMARKS = 5, 3, 6, 2, 4
OPTIONS = {"inner": INNER, "heads": HEADS, "landmarks": LANDMARKS, "dropout": 0.0}
WEIGHTS_C = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)


def make_model(**options: object) -> BagModel:
    return build_model("transmil", width=WIDTH, n_classes=N_CLASSES, options=OPTIONS | options, seed=1).double()


def literal_layer_norm(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    return torch.stack([(v - mean) / torch.sqrt(variance + 1e-5) for v in x]) * p[f"{name}.weight"] + p[f"{name}.bias"]


def literal_pyramid(p: dict[str, Tensor], square: list[list[Tensor]]) -> list[Tensor]:
    """Each cell + what each of the three kernels sums up around it, nothing outside the square."""
    side, result = len(square), []
    for row, column in itertools.product(range(side), repeat=2):
        total = square[row][column]
        for size in (7, 5, 3):
            kernel, half = p[f"position.around{size}.weight"], size // 2
            for i, j in itertools.product(range(size), repeat=2):
                if 0 <= row + i - half < side and 0 <= column + j - half < side:
                    total = total + kernel[:, 0, i, j] * square[row + i - half][column + j - half]
            total = total + p[f"position.around{size}.bias"]
        result.append(total)
    return result


def literal_transmil(p: dict[str, Tensor], x_ND: Tensor, dropout: dict[str, Tensor | float]) -> dict[str, Tensor]:
    """The paper's formulas; what dropout leaves of each attention's result is ``dropout[layer]`` times it."""
    n = len(x_ND)

    def part(layer: str) -> dict[str, Tensor]:
        return {name.removeprefix(f"{layer}."): value for name, value in p.items() if name.startswith(f"{layer}.")}

    def attend(layer: str, tokens: list[Tensor]) -> list[Tensor]:
        normed = torch.stack([literal_layer_norm(p, f"{layer}_norm", token) for token in tokens])
        change = literal_nystrom(part(layer), normed, HEADS, LANDMARKS) * dropout[layer]
        return [token + delta for token, delta in zip(tokens, change, strict=True)]

    patches = [(p["reduce.weight"] @ x + p["reduce.bias"]).clamp(min=0) for x in x_ND]
    side = next(s for s in itertools.count(1) if s * s >= n)
    repeated = [i % n for i in range(side * side)]
    tokens = attend("first", [p["class_token_1L"][0]] + [patches[i] for i in repeated])
    square = [tokens[1 + row * side : 1 + (row + 1) * side] for row in range(side)]
    tokens = [tokens[0], *literal_pyramid(p, square)]
    slide = literal_layer_norm(p, "norm", attend("second", tokens)[0])
    logits = p["slide_head.weight"] @ slide + p["slide_head.bias"]

    normed = [literal_layer_norm(p, "second_norm", token) for token in tokens]
    depth, attention = INNER // HEADS, []
    for head in range(HEADS):
        rows = slice(head * depth, (head + 1) * depth)
        query, keys = p["second.query.weight"][rows] @ normed[0], [p["second.key.weight"][rows] @ x for x in normed]
        on_tokens = literal_softmax([query], keys)[0]
        row = [sum(on_tokens[1 + t] for t, original in enumerate(repeated) if original == i) for i in range(n)]
        attention.append(torch.stack(row) / (1 - on_tokens[0]))

    return {"logits": logits, "attention": torch.stack(attention), "slide_vector": slide}


@pytest.mark.parametrize("n_instances", [1, 2, 3, 4, 7, 20])
@pytest.mark.parametrize(("training", "weights_C"), [(False, None), (True, None), (True, WEIGHTS_C)])
def test_equals_the_literal_definition(n_instances: int, training: bool, weights_C: Tensor | None) -> None:
    model, bag, target = make_model(dropout=0.25).train(training), random_bag(n_instances, WIDTH), 1
    kept = [record_kept(layer.dropout) for layer in (model.first, model.second)]
    output = model(bag)
    factors = [layer[0].double() / 0.75 for layer in kept] if training else [1.0, 1.0]
    dropout = dict(zip(("first", "second"), factors, strict=True))
    expected = literal_transmil(dict(model.named_parameters()), bag.features_ND, dropout)
    for got, name in (
        (output.logits_C, "logits"),
        (output.attention_KN, "attention"),
        (output.slide_vector_L, "slide_vector"),
    ):
        torch.testing.assert_close(got, expected[name], rtol=1e-9, atol=1e-11)
    wanted = cross_entropy(list(expected["logits"]), target, weights_C)
    assert_gradients_equal(model, model.loss(output, target, weights_C), wanted)


def test_pyramid_equals_three_convolutions_and_the_identity() -> None:
    torch.manual_seed(0)
    pyramid = PyramidPosition(INNER).double()
    x_TL = torch.randn(9 * 9, INNER, dtype=torch.float64)
    image = x_TL.T.reshape(1, INNER, 9, 9)
    expected = image
    for half, convolution in enumerate((pyramid.around3, pyramid.around5, pyramid.around7), start=1):
        expected = expected + conv2d(image, convolution.weight, convolution.bias, padding=half, groups=INNER)
    torch.testing.assert_close(pyramid(x_TL), expected[0].flatten(1).T)


@pytest.mark.parametrize("n_instances", [1, 2, 3, 15, 16, 17, 300])
def test_attention_is_a_distribution_over_the_patches(n_instances: int) -> None:
    attention_KN = make_model().eval()(random_bag(n_instances, WIDTH)).attention_KN
    assert attention_KN.shape == (HEADS, n_instances)
    assert (attention_KN >= 0).all()
    torch.testing.assert_close(attention_KN.sum(dim=1), torch.ones(HEADS, dtype=torch.float64))


def test_the_order_of_the_patches_matters() -> None:
    model, bag = make_model().eval(), random_bag(30, WIDTH)
    turned = Bag("slide", bag.features_ND.flip(0), bag.coords_N2, 256)
    assert not torch.allclose(model(bag).logits_C, model(turned).logits_C, rtol=1e-4)


def test_dropout_is_on_in_training_and_off_in_eval() -> None:
    model, bag = make_model(dropout=0.5), random_bag(30, WIDTH)
    model.train()
    assert not torch.equal(model(bag).logits_C, model(bag).logits_C)
    torch.manual_seed(5)
    first = model(bag).logits_C
    torch.manual_seed(5)
    assert torch.equal(model(bag).logits_C, first)
    model.eval()
    assert torch.equal(model(bag).logits_C, model(bag).logits_C)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_features_of_any_float_type_meet_the_model_in_its_own(dtype: torch.dtype) -> None:
    model = build_model("transmil", width=WIDTH, n_classes=N_CLASSES, options=OPTIONS, seed=1).eval()
    bag = random_bag(20, WIDTH, dtype)
    widened = Bag("slide", bag.features_ND.float(), bag.coords_N2, 256)
    output = model(bag)
    assert output.logits_C.dtype == torch.float32
    assert torch.equal(output.logits_C, model(widened).logits_C)


def test_float32_is_near_float64_with_the_authors_sizes() -> None:
    model = build_model("transmil", width=64, n_classes=2, seed=1).eval()
    bag = random_bag(700, 64)
    single = model(Bag("slide", bag.features_ND.float(), bag.coords_N2, 256))
    double = model.double()(bag)
    torch.testing.assert_close(single.logits_C.double(), double.logits_C, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(single.attention_KN.double(), double.attention_KN, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("input_norm", ["none", "layer", "bag"])
@pytest.mark.parametrize("n_instances", [1, 40])
def test_constant_bags_stay_finite(input_norm: str, n_instances: int) -> None:
    model = make_model(input_norm=input_norm).train()
    bag = Bag("slide", torch.full((n_instances, WIDTH), 100.0), torch.zeros(n_instances, 2, dtype=torch.int64), 256)
    model.loss(model(bag), 0).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_fifty_thousand_patches_pass() -> None:
    options = {"inner": 32, "heads": 2, "landmarks": 64}
    model = build_model("transmil", width=8, n_classes=2, options=options, seed=1)
    output = model.train()(random_bag(50_000, 8, torch.float16))
    model.loss(output, 1).backward()
    assert output.attention_KN.shape == (2, 50_000)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_class_weights_scale_the_loss() -> None:
    model = make_model().eval()
    output = model(random_bag(8, WIDTH))
    torch.testing.assert_close(model.loss(output, 1, WEIGHTS_C), 2.0 * model.loss(output, 1))


@pytest.mark.parametrize("options", [{}, {"input_norm": "layer"}, {"input_norm": "bag"}])
def test_groups_are_disjoint_and_cover_everything(options: dict[str, object]) -> None:
    model = make_model(**options)
    names = [name for group in model.parameter_groups().values() for name in group]
    assert sorted(names) == sorted(model.state_dict())
    assert len(set(names)) == len(names)


def test_heads_must_divide_the_tokens() -> None:
    with pytest.raises(ConfigError, match=r"model.options.inner = 6.*heads = 4.*inner = 8") as caught:
        make_model(heads=4)
    assert math.isfinite(caught.value.exit_code)
