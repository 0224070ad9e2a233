"""DTFD-MIL against a definition written out by hand: loops, one number at a time, in float64."""

from collections import Counter

import pytest
import torch
from literal import affine, assert_gradients_equal, cross_entropy, random_bag, record_kept, softmax, stacked, total
from torch import Tensor

from fedpath.core.bags import Bag
from fedpath.core.models import BagModel, build_model
from fedpath.core.models.dtfd import split

WIDTH, INNER, ATTENTION, PSEUDO_BAGS = 5, 4, 3, 3
OPTIONS = {"inner": INNER, "attention": ATTENTION, "pseudo_bags": PSEUDO_BAGS}
WEIGHTS_C = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
NAMES = ("dtfd-afs", "dtfd-maxs")


def make_model(name: str, n_classes: int = 2, **options: object) -> BagModel:
    return build_model(name, width=WIDTH, n_classes=n_classes, options=OPTIONS | options, seed=1).double()


def literal_attention(p: dict[str, Tensor], tier: str, vectors: list[list[Tensor]]) -> list[Tensor]:
    scores = []
    for h in vectors:
        gated = []
        for a in range(ATTENTION):
            content = affine(p[f"{tier}.gate.weight"][a], p[f"{tier}.gate.bias"][a], h)
            gate = affine(p[f"{tier}.gate.weight"][ATTENTION + a], p[f"{tier}.gate.bias"][ATTENTION + a], h)
            gated.append(torch.tanh(content) / (1 + torch.exp(-gate)))
        scores.append(affine(p[f"{tier}.score.weight"][0], p[f"{tier}.score.bias"][0], gated))
    return softmax(scores)


def literal_dtfd(
    p: dict[str, Tensor], x_ND: Tensor, name: str, pseudo_bags: list[list[int]], factor_NL: Tensor
) -> dict[str, Tensor]:
    """The paper's formulas for the given split; ``factor_NL`` is what dropout multiplies the inner features with."""
    n_classes, none = len(p["slide_head.bias"]), x_ND.new_zeros(())
    hidden = [
        [affine(p["reduce.weight"][j], none, x).clamp(min=0) * factor_NL[i, j] for j in range(INNER)]
        for i, x in enumerate(x_ND)
    ]

    def pooled(weights: list[Tensor], vectors: list[list[Tensor]]) -> list[Tensor]:
        return [total([a * v[j] for a, v in zip(weights, vectors, strict=True)]) for j in range(INNER)]

    def classified(head: str, vector: list[Tensor]) -> list[Tensor]:
        return [affine(p[f"{head}.weight"][c], p[f"{head}.bias"][c], vector) for c in range(n_classes)]

    first_logits, distilled, shares = [], [], []
    for members in pseudo_bags:
        vectors = [hidden[i] for i in members]
        attention = literal_attention(p, "first_score", vectors)
        pooled_vector = pooled(attention, vectors)
        first_logits.append(classified("first_head", pooled_vector))
        if name == "dtfd-maxs":
            positive = 1 if n_classes == 2 else max(range(n_classes), key=lambda c: first_logits[-1][c].item())
            probabilities = []
            for a, h in zip(attention, vectors, strict=True):
                activation = [affine(row, none, [a * v for v in h]) for row in p["first_head.weight"]]
                probabilities.append(softmax(activation)[positive].item())
            best = probabilities.index(max(probabilities))
            distilled.append(vectors[best])
            shares.append({i: none + (place == best) for place, i in enumerate(members)})
        else:
            distilled.append(pooled_vector)
            shares.append(dict(zip(members, attention, strict=True)))

    second = literal_attention(p, "second_score", distilled)
    slide = pooled(second, distilled)
    row = [total([second[m] * share.get(i, none) for m, share in enumerate(shares)]) for i in range(len(x_ND))]
    return {
        "logits": torch.stack(classified("slide_head", slide)),
        "attention": stacked([row]),
        "slide_vector": torch.stack(slide),
        "branch_logits": stacked(first_logits),
    }


def literal_split(n_instances: int, places: list[int]) -> list[list[int]]:
    n_bags = min(PSEUDO_BAGS, n_instances)
    return [[i for i in range(n_instances) if places[i] % n_bags == m] for m in range(n_bags)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_instances", [1, 2, 3, 7, 20])
@pytest.mark.parametrize(
    ("n_classes", "training", "weights_C"),
    [(2, False, None), (2, True, WEIGHTS_C), (3, False, WEIGHTS_C), (3, True, None)],
)
def test_equals_the_literal_definition(
    name: str, n_instances: int, n_classes: int, training: bool, weights_C: Tensor | None
) -> None:
    model, bag, target = make_model(name, n_classes, dropout=0.25).train(training), random_bag(n_instances, WIDTH), 1
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # attentions far from even, activations far from equal
    kept = record_kept(model.dropout)
    torch.manual_seed(3)
    output = model(bag)
    torch.manual_seed(3)
    places = torch.randperm(n_instances).tolist() if training else list(range(n_instances))
    factor_NL = kept[0].double() / 0.75 if training else torch.ones(n_instances, INNER)
    pseudo_bags = literal_split(n_instances, places)
    expected = literal_dtfd(dict(model.named_parameters()), bag.features_ND, name, pseudo_bags, factor_NL)

    assert output.branch_logits_KC is not None
    for got, key in (
        (output.logits_C, "logits"),
        (output.attention_KN, "attention"),
        (output.slide_vector_L, "slide_vector"),
        (output.branch_logits_KC, "branch_logits"),
    ):
        torch.testing.assert_close(got, expected[key], rtol=1e-10, atol=1e-12)
    tiers = [cross_entropy(list(row), target, weights_C) for row in expected["branch_logits"]]
    loss = total(tiers) / len(tiers) + cross_entropy(list(expected["logits"]), target, weights_C)
    assert_gradients_equal(model, model.loss(output, target, weights_C), loss)


@pytest.mark.parametrize(
    ("n_instances", "sizes"), [(1, [1]), (2, [1, 1]), (3, [1, 1, 1]), (7, [3, 2, 2]), (9, [3, 3, 3])]
)
def test_pseudo_bags_are_even_disjoint_and_never_empty(n_instances: int, sizes: list[int]) -> None:
    torch.manual_seed(0)
    for at_random in (False, True):
        member_MN = split(n_instances, PSEUDO_BAGS, at_random=at_random)
        assert member_MN.sum(dim=1).tolist() == sizes
        assert member_MN.sum(dim=0).tolist() == [1] * n_instances


def test_the_split_is_drawn_in_training_and_fixed_in_evaluation() -> None:
    fixed_MN = split(7, PSEUDO_BAGS, at_random=False)
    assert fixed_MN.nonzero()[:, 1].tolist() == [0, 3, 6, 1, 4, 2, 5]
    torch.manual_seed(0)
    drawn = Counter(tuple(split(7, PSEUDO_BAGS, at_random=True).flatten().tolist()) for _ in range(50))
    assert len(drawn) > 30

    model, bag = make_model("dtfd-afs"), random_bag(30, WIDTH)
    model.eval()
    state = torch.get_rng_state()
    assert torch.equal(model(bag).logits_C, model(bag).logits_C)
    assert torch.equal(torch.get_rng_state(), state)
    model.train()
    assert not torch.equal(model(bag).logits_C, model(bag).logits_C)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_instances", [1, 2, 3, 40])
def test_attention_is_the_share_of_each_patch_in_the_slide_vector(name: str, n_instances: int) -> None:
    model, bag = make_model(name).eval(), random_bag(n_instances, WIDTH)
    output = model(bag)
    hidden_NL = torch.relu(model.reduce(bag.features_ND))
    assert output.attention_KN.shape == (1, n_instances)
    assert (output.attention_KN >= 0).all()
    torch.testing.assert_close(output.attention_KN.sum().item(), 1.0)
    torch.testing.assert_close(output.attention_N @ hidden_NL, output.slide_vector_L)
    shown = min(PSEUDO_BAGS, n_instances) if name == "dtfd-maxs" else n_instances
    assert (output.attention_KN > 0).sum() == shown


@pytest.mark.parametrize("name", NAMES)
def test_the_second_tier_trains_the_first_through_what_is_distilled(name: str) -> None:
    model = make_model(name).train()
    second = cross_entropy(list(model(random_bag(20, WIDTH)).logits_C), 1)
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(second, list(parameters.values()), allow_unused=True)
    reached = {key for key, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
    assert "reduce.weight" in reached
    assert ("first_score.gate.weight" in reached) == (name == "dtfd-afs")
    assert "first_head.weight" not in reached


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_features_of_any_float_type_meet_the_model_in_its_own(name: str, dtype: torch.dtype) -> None:
    model = build_model(name, width=WIDTH, n_classes=2, options=OPTIONS, seed=1).eval()
    bag = random_bag(9, WIDTH, dtype)
    widened = Bag("slide", bag.features_ND.float(), bag.coords_N2, 256)
    output = model(bag)
    assert output.logits_C.dtype == torch.float32
    assert torch.equal(output.logits_C, model(widened).logits_C)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("input_norm", ["none", "layer", "bag"])
@pytest.mark.parametrize("n_instances", [1, 2, 40])
def test_constant_bags_stay_finite(name: str, input_norm: str, n_instances: int) -> None:
    model = make_model(name, input_norm=input_norm).train()
    bag = Bag("slide", torch.full((n_instances, WIDTH), 100.0), torch.zeros(n_instances, 2, dtype=torch.int64), 256)
    model.loss(model(bag), 0).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_fifty_thousand_patches_pass(name: str) -> None:
    model = build_model(name, width=8, n_classes=2, options={"inner": 16, "attention": 8}, seed=1).train()
    output = model(random_bag(50_000, 8, torch.float16))
    model.loss(output, 1).backward()
    assert output.branch_logits_KC is not None
    assert output.branch_logits_KC.shape == (5, 2)
    torch.testing.assert_close(output.attention_N.sum().item(), 1.0)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"input_norm": "layer"}, {"input_norm": "bag"}])
def test_groups_are_disjoint_and_cover_everything(name: str, options: dict[str, object]) -> None:
    model = make_model(name, **options)
    names = [parameter for group in model.parameter_groups().values() for parameter in group]
    assert sorted(names) == sorted(model.state_dict())
    assert len(set(names)) == len(names)
